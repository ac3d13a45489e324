#!/bin/sh
# Builds autosam-video_VERSION_ARCH.deb: program, plugin, model, manual pages, completions.
#   packaging/deb.sh [OUT]     OUT: folder for the package, default target/deb
# Build it on the oldest supported release: a package built on Debian 12 installs on 13, but not the reverse.
# Needs ./setup.sh's packages and dpkg-dev. CUDA=1 builds with --features cuda.
set -eu
cd "$(dirname "$0")/.."
out="${1:-target/deb}"
target="${CARGO_TARGET_DIR:-target}/release"
features=""
[ -z "${CUDA:-}" ] || features="--features autosam-video/cuda,gst-autosam/cuda"
# shellcheck disable=SC2086 # a list of words
cargo build --release --workspace --locked $features

version="$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)"
arch="$(dpkg --print-architecture)"
multiarch="$(dpkg-architecture -qDEB_HOST_MULTIARCH)"
stage="$(mktemp -d)"
trap 'rm -rf "$stage"' EXIT
root="$stage/root"
doc="$root/usr/share/doc/autosam-video"

install -D -m 755 -s "$target/autosam-video" "$root/usr/bin/autosam-video"
install -D -m 644 -s "$target/libgstautosam.so" "$root/usr/lib/$multiarch/gstreamer-1.0/libgstautosam.so"
install -D -m 644 models/autosam-lite.safetensors "$root/usr/share/autosam-video/models/autosam-lite.safetensors"
install -D -m 644 models/autosam-lite.md "$root/usr/share/autosam-video/models/autosam-lite.md"
# The model card links to this file.
install -D -m 644 docs/calibration.svg "$root/usr/share/autosam-video/docs/calibration.svg"
install -D -m 644 README.md "$doc/README.md"
install -D -m 644 LICENSE "$doc/copyright"
gzip -9nc CHANGELOG.md > "$doc/changelog.gz"
cp -r examples/jobs "$doc/"
# The service is installed but neither enabled nor started, because the user must first choose the camera.
install -D -m 644 packaging/systemd/autosam-monitor.service "$root/usr/lib/systemd/system/autosam-monitor.service"
install -D -m 644 packaging/systemd/autosam-monitor.default "$root/etc/default/autosam-monitor"
"$target/autosam-video" manual "$root/usr/share/man/man1"
gzip -9n "$root"/usr/share/man/man1/*.1
for shell in bash:bash-completion/completions/autosam-video zsh:zsh/vendor-completions/_autosam-video \
    fish:fish/vendor_completions.d/autosam-video.fish; do
    file="$root/usr/share/${shell#*:}"
    mkdir -p "$(dirname "$file")"
    "$target/autosam-video" completions "${shell%%:*}" > "$file"
done
find "$root" -type d -exec chmod 755 {} +
find "$root/usr/share" -type f -exec chmod 644 {} +

# The packages of the shared libraries that the two binaries need.
mkdir -p "$stage/debian"
printf 'Source: autosam-video\n\nPackage: autosam-video\nArchitecture: any\n' > "$stage/debian/control"
depends="$(cd "$stage" && dpkg-shlibdeps -O root/usr/bin/autosam-video "root/usr/lib/$multiarch/gstreamer-1.0/libgstautosam.so" 2>/dev/null |
    sed -n 's/^shlibs:Depends=//p')"
[ -n "$depends" ] || { echo "dpkg-shlibdeps gave no dependencies" >&2; exit 1; }

mkdir -p "$root/DEBIAN" "$out"
echo /etc/default/autosam-monitor > "$root/DEBIAN/conffiles"
cat > "$root/DEBIAN/control" <<CONTROL
Package: autosam-video
Version: $version
Architecture: $arch
Maintainer: autosam-video developers <maintainers@autosam-video.invalid>
Installed-Size: $(du -ks --exclude=DEBIAN "$root" | cut -f1)
Depends: $depends, gstreamer1.0-plugins-base
Recommends: gstreamer1.0-tools, gstreamer1.0-plugins-good, gstreamer1.0-plugins-bad, gstreamer1.0-plugins-ugly, gstreamer1.0-libav
Section: science
Priority: optional
Homepage: https://github.com/autosam-video/autosam-video
Description: segments polyps in live endoscopy video with AutoSAM
 A GStreamer element (autosam) and a program (autosam-video) that overlay polyps in
 endoscopy video by a Segment Anything Model, prompted by a small network.
 .
 For research only. Not a medical device.
CONTROL
dpkg-deb --root-owner-group --build "$root" "$out/autosam-video_${version}_${arch}.deb"

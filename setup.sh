#!/bin/sh
# Installs GStreamer's packages (Debian 12 or 13, Ubuntu 24.04) and builds the program and the plugin.
#   ./setup.sh                        packages and build
#   ./setup.sh --packages [PACKAGE…]  packages only, and more if they are named
set -eu
cd "$(dirname "$0")"

packages="build-essential pkg-config
    libgstreamer1.0-dev libgstreamer-plugins-base1.0-dev
    gstreamer1.0-tools gstreamer1.0-plugins-base gstreamer1.0-plugins-good
    gstreamer1.0-plugins-bad gstreamer1.0-plugins-ugly gstreamer1.0-libav gstreamer1.0-x"

# Whether version $1 is version $2 or later.
recent() {
    [ "$(printf '%s\n' "$1" "$2" | sort -V | head -n 1)" = "$2" ]
}

# Puts a sufficiently new Rust first on PATH, or prints how to install one. It runs before the packages (2 GB) are installed.
find_rust() {
    needed="$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)"
    found=""
    # rustup's own folder is not yet on the PATH of the shell that installed it.
    for bin in "" "${CARGO_HOME:-$HOME/.cargo}/bin:"; do
        version="$(PATH="$bin$PATH" rustc --version 2>/dev/null | cut -d ' ' -f 2)"
        if [ -n "$version" ] && recent "$version" "$needed" && PATH="$bin$PATH" cargo --version >/dev/null 2>&1; then
            PATH="$bin$PATH"
            return
        fi
        found="${found:-$version}"
    done
    if [ -n "$found" ]; then
        echo "Rust $needed or later with cargo is needed, and this machine has $found. One of these installs it:" >&2
    else
        echo "Rust $needed or later with cargo is needed, and this machine has none. One of these installs it:" >&2
    fi
    echo "    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh    # rustup, for your user" >&2
    echo "    apt-get install cargo-web    # as root, Debian 12 and 13 with security updates; replaces Debian's older cargo" >&2
    echo "Then run ./setup.sh again. Nothing was installed." >&2
    exit 1
}

# Installs the packages in $1, or prints the command for root.
install_packages() {
    root=""
    if [ "$(id -u)" != 0 ]; then
        root=sudo
        if ! command -v sudo >/dev/null || ! sudo -v; then
            echo "Packages are missing and only root can install them. Run as root:" >&2
            echo "    apt-get update && apt-get install -y --no-install-recommends$1" >&2
            echo "Then run ./setup.sh again." >&2
            exit 1
        fi
    fi
    echo "installing:$1"
    $root apt-get update -q
    # shellcheck disable=SC2086 # a list of words
    $root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $1
}

only=false
if [ "${1:-}" = --packages ]; then
    only=true
    shift
    packages="$packages $*"
fi
$only || find_rust

missing=""
for package in $packages; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q '^install ok installed$' || missing="$missing $package"
done
[ -z "$missing" ] || install_packages "$missing"
! $only || exit 0

cargo build --release --workspace --locked
echo
echo "The program: $PWD/target/release/autosam-video"
echo "The plugin:  export GST_PLUGIN_PATH=$PWD/target/release"

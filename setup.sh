#!/bin/sh
# Installs GStreamer's packages (Debian 12 or later, Ubuntu 22.04 or later) and builds the program and the plugin.
#   ./setup.sh                        packages and build
#   ./setup.sh --packages [PACKAGE…]  packages only, and more where they are named
set -eu
cd "$(dirname "$0")"

packages="build-essential pkg-config
    libgstreamer1.0-dev libgstreamer-plugins-base1.0-dev libgstreamer-plugins-bad1.0-dev
    gstreamer1.0-tools gstreamer1.0-plugins-base gstreamer1.0-plugins-good
    gstreamer1.0-plugins-bad gstreamer1.0-plugins-ugly gstreamer1.0-libav gstreamer1.0-x"

only=false
if [ "${1:-}" = --packages ]; then
    only=true
    shift
    packages="$packages $*"
fi
missing=""
for package in $packages; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q '^install ok installed$' || missing="$missing $package"
done
if [ -n "$missing" ]; then
    root=""
    [ "$(id -u)" = 0 ] || root=sudo
    echo "installing:$missing"
    $root apt-get update -q
    # shellcheck disable=SC2086 # a list of words
    DEBIAN_FRONTEND=noninteractive $root apt-get install -q -y --no-install-recommends $missing
fi
! $only || exit 0

if ! command -v cargo >/dev/null; then
    echo "Rust is missing: see https://rustup.rs, then run ./setup.sh again" >&2
    exit 1
fi
cargo build --release --workspace --locked
echo
echo "The program: $PWD/target/release/autosam-video"
echo "The plugin:  export GST_PLUGIN_PATH=$PWD/target/release"

#!/bin/sh
# Installs the C library: `sh crates/libmobile/install.sh BUILD [PREFIX]`. BUILD is the directory
# with libmobile.so, such as target/release; PREFIX is /usr/local by default. If DESTDIR is set, it
# is prepended to PREFIX, as packagers expect.
set -eu

build=${1:?usage: sh crates/libmobile/install.sh BUILD [PREFIX]}
prefix=${2:-/usr/local}
root=${DESTDIR:-}$prefix
here=$(dirname "$0")
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$here/../../Cargo.toml" | head -n 1)

install -d "$root/lib/pkgconfig" "$root/include"
install -m 755 "$build/libmobile.so" "$root/lib/libmobile.so.$version"
ln -sf "libmobile.so.$version" "$root/lib/libmobile.so.0"
ln -sf libmobile.so.0 "$root/lib/libmobile.so"
install -m 644 "$here/include/mobile.h" "$root/include/mobile.h"
sed -e "s|@prefix@|$prefix|" -e "s|@version@|$version|" "$here/mobile.pc.in" > "$root/lib/pkgconfig/mobile.pc"
chmod 644 "$root/lib/pkgconfig/mobile.pc"
# The dynamic linker finds libraries by its cache, which a staged tree does not have.
if [ -z "${DESTDIR:-}" ] && [ "$(id -u)" = 0 ]; then
    ldconfig
fi

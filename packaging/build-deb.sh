#!/bin/bash
# build-deb.sh [--binary FILE] [DIR] — build sandbox_VERSION_ARCH.deb in DIR (default: target/) and print its path.
# Without --binary it builds the release program first, linked to this machine's libc: build on the oldest release that it is for.
# Needs dpkg-dev and binutils (and cargo without --binary); no root. DEBFULLNAME and DEBEMAIL say whose package it is.
# The same input gives the same package, bit for bit.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
cd "$here/.."

die() { echo "build-deb: $*" >&2; exit 125; }

binary='' out=target
while [ $# -gt 0 ]; do
  case "$1" in
    --binary) binary=${2:?--binary FILE}; shift 2 ;;
    -*) sed -n '2,5p' "$0"; exit 125 ;;
    *) out=$1; shift ;;
  esac
done

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n1)
maintainer="${DEBFULLNAME:-The sandbox authors} <${DEBEMAIL:-sandbox@example.com}>"
architecture=$(dpkg --print-architecture)
# The time of the commit, so that a package can be built again.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2> /dev/null || date -r Cargo.toml +%s)}
export SOURCE_DATE_EPOCH
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root
umask 022

if [ -z "$binary" ]; then
  target=$(rustc -vV | sed -n 's/^host: //p')
  RUSTFLAGS='' cargo build --release --target "$target" >&2
  binary=${CARGO_TARGET_DIR:-target}/$target/release/sandbox
fi
[ -x "$binary" ] || die "there is no program $binary"

"$here/files.sh" "$binary" "$root" /usr/share/zsh/vendor-completions

# --- what only Debian has ------------------------------------------------------------------------------------------------------

doc=$root/usr/share/doc/sandbox
{ printf 'Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\nUpstream-Name: sandbox\n\nFiles: *\n'
  printf 'Copyright: %s\nLicense: Expat\n' "$(sed -n 's/^Copyright (c) //p' LICENSE | head -n1)"
  sed -n '/^Permission/,$p' LICENSE | sed 's/^$/./; s/^/ /'; } > "$doc/copyright"
{ printf 'sandbox (%s) unstable; urgency=medium\n\n  * See README.md, and the history of the project.\n\n' "$version"
  printf ' -- %s  %s\n' "$maintainer" "$(date -u -R -d "@$SOURCE_DATE_EPOCH")"
} | gzip -9n > "$doc/changelog.gz"

mkdir -p "$root/DEBIAN" "$work/debian"
install -m755 packaging/deb/postinst packaging/deb/prerm packaging/deb/postrm "$root/DEBIAN/"

printf 'Source: sandbox\n\nPackage: sandbox\nArchitecture: any\n' > "$work/debian/control"
libraries=
if readelf --dynamic "$root/usr/bin/sandbox" | grep -q NEEDED; then
  libraries=$(cd "$work" && dpkg-shlibdeps -O "$root/usr/bin/sandbox" | sed -n 's/^shlibs:Depends=//p')
else
  # One static program, as the tests carry it from one release to another.
  install -d "$root/usr/share/lintian/overrides"
  echo "sandbox: statically-linked-binary [usr/bin/sandbox]" > "$root/usr/share/lintian/overrides/sandbox"
fi

cat > "$root/DEBIAN/control" << END
Package: sandbox
Version: $version
Architecture: $architecture
Maintainer: $maintainer
Installed-Size: $(du -k -s --apparent-size "$root" | cut -f1)
Depends: ${libraries:+$libraries, }systemd (>= 247), default-dbus-system-bus | dbus-system-bus
Recommends: uidmap
Suggests: dbus-user-session, apparmor
Section: admin
Priority: optional
Description: start a command in a container that systemd owns
 Each sandbox is a transient unit in a slice, with limits that are checked to
 be in force, around a process with its own namespaces and a copy-on-write
 root: by default a view of the machine's own files, else a directory or an
 image. There is no daemon. systemctl, systemd-cgls, systemd-cgtop and
 journalctl are the tools to look at it.
 .
 The package brings sandbox@.service, which runs a profile at boot.
END

# Every file as old as the commit: mtimes would make each package another one.
find "$root" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
mkdir -p "$out"
package=$(realpath "$out")/sandbox_${version}_$architecture.deb
dpkg-deb --root-owner-group -Zxz --build "$root" "$work/sandbox.deb" >&2
mv "$work/sandbox.deb" "$package"
echo "$package"

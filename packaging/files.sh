#!/bin/bash
# files.sh PROGRAM ROOT ZSH-DIRECTORY — lay out below ROOT what every package of sandbox has in it.
# The man pages and completions come out of PROGRAM, so they are those of its flags.
set -euo pipefail
cd "$(dirname "$(realpath "$0")")/.."
program=$1 root=$2 zsh=$3

put() { # put MODE FILE… DIRECTORY
  local mode=$1; shift
  install -d "$root${*: -1}"
  install -m"$mode" "${@:1:$#-1}" "$root${*: -1}/"
}

put 755 "$program" /usr/bin
[ "$(basename "$program")" = sandbox ] || mv "$root/usr/bin/$(basename "$program")" "$root/usr/bin/sandbox"
strip --strip-unneeded "$root/usr/bin/sandbox"

put 644 units/*.service units/*.slice units/*.timer /usr/lib/systemd/system
put 644 examples/top.toml /usr/share/sandbox
put 644 packaging/apparmor/sandbox /usr/share/sandbox/apparmor
install -d "$root/etc/sandbox"

put 644 examples/*.toml examples/*.socket units/sandbox-.scope.d/50-site.conf /usr/share/doc/sandbox/examples
put 644 README.md /usr/share/doc/sandbox

"$program" generate man "$root/usr/share/man/man1"
gzip -9n "$root"/usr/share/man/man1/*.1
install -d "$root/usr/share/bash-completion/completions" "$root$zsh" "$root/usr/share/fish/vendor_completions.d"
"$program" generate completions bash > "$root/usr/share/bash-completion/completions/sandbox"
"$program" generate completions zsh > "$root$zsh/_sandbox"
"$program" generate completions fish > "$root/usr/share/fish/vendor_completions.d/sandbox.fish"

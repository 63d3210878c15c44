#!/bin/bash
# package.sh PROGRAM DIR — build the Debian package of PROGRAM in DIR, look at it with lintian, and in a lab on a copy-on-write view
# of this machine install it, use what it brings, and purge it: nothing may be left. Root; DIR must be one that the lab may bind.
set -euo pipefail
here=$(dirname "$(realpath "$0")")

fail() { echo "package.sh: $*" >&2; exit 1; }

outside() { # outside PROGRAM DIR
  local package again
  package=$("$here/../packaging/build-deb.sh" --binary "$1" "$2")
  again=$(sha256sum < "$package")
  "$here/../packaging/build-deb.sh" --binary "$1" "$2" > /dev/null
  [ "$again" = "$(sha256sum < "$package")" ] || fail "two builds gave two packages"
  lintian --fail-on error --allow-root "$package"
  cp "$0" "$2/package.sh"
  exec bash "$here/lab/lab.sh" run --bind "$2" -- bash "$2/package.sh" _inside "$package"
}

of_ours() { # every path with our name, and what is enabled
  find /etc /usr /var/lib /run -xdev -name '*sandbox*' ! -path '/var/lib/dpkg/*' ! -path '/run/systemd/*' | sort
  find /etc/systemd -type l | sort
}

completes() { # completes WORD…: what bash offers for the last one
  bash -c 'source /usr/share/bash-completion/completions/sandbox
    COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
    _sandbox sandbox "${@: -1}" "${@: -2:1}"
    printf "%s\n" "${COMPREPLY[@]}"' bash "$@"
}

install_it() {
  # A machine that leaves out manuals (containers do) has to show them here.
  DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends -o Dpkg::Use-Pty=0 -o 'Dpkg::Options::=--path-include=/usr/share/man/*' \
    -o 'Dpkg::Options::=--path-include=/usr/share/doc/*' install "$1" < /dev/null
  [ "$(command -v sandbox)" = /usr/bin/sandbox ] || fail "the program is not the package's"
}

use_it() {
  local page
  for page in sandbox sandbox-run sandbox-unit-install; do
    man "$page" | grep -q "$(tr - ' ' <<< "$page")" || fail "no manual $page"
  done
  man sandbox-run | grep -q -e '--memory' || fail "sandbox-run(1) does not have the flags"
  [ "$(completes sandbox run --memor)" = --memory ] || fail "bash completes --memor to $(completes sandbox run --memor)"
  grep -q -e --memory /usr/share/zsh/vendor-completions/_sandbox || fail "zsh has no completions"
  grep -q -e memory /usr/share/fish/vendor_completions.d/sandbox.fish || fail "fish has no completions"
  systemd-analyze verify --man=yes sandbox@top.service sandbox.slice sandbox-gc.service sandbox-gc.timer
  systemctl enable --now sandbox-gc.timer
  systemctl start sandbox-gc.service || fail "sandbox-gc.service: $(systemctl status --no-pager sandbox-gc.service)"
  sandbox unit check top
}

inside() { # inside PACKAGE
  local before
  before=$(of_ours)
  install_it "$1"
  use_it
  systemctl enable --now sandbox@top || fail "sandbox@top does not start: $(systemctl status --no-pager sandbox@top)"
  [ "$(systemctl show --property MemoryMax --value sandbox@top)" = $((500 << 20)) ] || fail "sandbox@top has no limit"
  echo 'command = ["sleep", "infinity"]' > /etc/sandbox/sleeper.toml
  sandbox unit install sleeper --enable --now
  apt-get -q -y -o Dpkg::Use-Pty=0 purge sandbox < /dev/null
  diff <(echo "$before") <(of_ours) || fail "this is left of it"
  [ -z "$(systemctl list-units --all --plain --no-legend 'sandbox*')" ] || fail "units are left of it"
  echo "package.sh: installed, used and purged"
}

case "${1:-}" in
  _inside) inside "$2" ;;
  "" | -*) sed -n '2,3p' "$0"; exit 125 ;;
  *) outside "$1" "$2" ;;
esac

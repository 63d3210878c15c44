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

manuals() {
  local page
  command -v man > /dev/null || return 0   # only one tree of the VMs has it
  for page in sandbox sandbox-run sandbox-unit-install; do
    man "$page" | grep -q "$(tr - ' ' <<< "$page")" || fail "no manual $page"
  done
  man sandbox-run | grep -q -e '--memory' || fail "sandbox-run(1) does not have the flags"
}

use_it() {
  local problems manual=yes
  manuals
  command -v man > /dev/null || manual=no
  [ "$(completes sandbox run --memor)" = --memory ] || fail "bash completes --memor to $(completes sandbox run --memor)"
  grep -q -e --memory /usr/share/zsh/vendor-completions/_sandbox || fail "zsh has no completions"
  grep -q -e memory /usr/share/fish/vendor_completions.d/sandbox.fish || fail "fish has no completions"
  problems=$(systemd-analyze verify --man=$manual sandbox@top.service sandbox.slice sandbox-gc.service sandbox-gc.timer 2>&1 |
    grep -F sandbox || true)
  [ -z "$problems" ] || fail "systemd-analyze verify: $problems"
  systemctl enable --now sandbox-gc.timer
  systemctl start sandbox-gc.service || fail "sandbox-gc.service: $(systemctl status --no-pager sandbox-gc.service)"
  sandbox unit check top
}

enable_top() {
  systemctl enable --now sandbox@top || fail "sandbox@top does not start: $(systemctl status --no-pager sandbox@top)"
  has_limit
  apparmor_knows
}

apparmor_knows() { # on a machine where AppArmor decides, and is new enough for the package's profile
  [ -e /etc/apparmor.d/abi/4.0 ] && [ -e /sys/kernel/security/apparmor/profiles ] || return 0
  grep -qx 'sandbox (unconfined)' /sys/kernel/security/apparmor/profiles || fail "the AppArmor profile is not loaded"
  local pid; pid=$(systemctl show --property MainPID --value sandbox@top)
  grep -qx 'sandbox (unconfined)' "/proc/$pid/attr/current" || fail "sandbox@top is $(cat "/proc/$pid/attr/current") to AppArmor"
}

has_limit() {
  [ "$(systemctl show --property MemoryMax --value sandbox@top)" = $((500 << 20)) ] || fail "sandbox@top has no limit"
}

purge_it() { # purge_it BEFORE
  apt-get -q -y -o Dpkg::Use-Pty=0 purge sandbox < /dev/null
  diff <(echo "$1") <(of_ours) || fail "this is left of it"
  [ -z "$(systemctl list-units --all --plain --no-legend 'sandbox*')" ] || fail "units are left of it"
  ! grep -qs '^sandbox ' /sys/kernel/security/apparmor/profiles || fail "its AppArmor profile is still loaded"
}

inside() { # inside PACKAGE
  local before
  before=$(of_ours)
  install_it "$1"
  use_it
  enable_top
  echo 'command = ["sleep", "infinity"]' > /etc/sandbox/sleeper.toml
  sandbox unit install sleeper --enable --now
  purge_it "$before"
  echo "package.sh: installed, used and purged"
}

boot1() { # boot1 PACKAGE
  of_ours > /var/tmp/before
  install_it "$1"
  use_it
  enable_top
  systemctl add-wants multi-user.target bed.target
  sync
  echo "package.sh: installed and enabled"
}

boot2() {
  systemctl is-active sandbox@top || fail "sandbox@top did not come back: $(systemctl status --no-pager sandbox@top)"
  [ "$(systemctl show --property NRestarts --value sandbox@top)" = 0 ] || fail "sandbox@top was started more than once"
  has_limit
  apparmor_knows
  sandbox exec sandbox@top.service true || fail "exec does not reach it"
  sandbox ps | grep -q sandbox@top.service || fail "ps does not show it: $(sandbox ps)"
  rm /etc/systemd/system/multi-user.target.wants/bed.target
  purge_it "$(cat /var/tmp/before)"
  echo "package.sh: it came back with the machine, and was purged"
}

case "${1:-}" in
  _inside) inside "$2" ;;
  _boot1) boot1 "$2" ;;
  _boot2) boot2 ;;
  "" | -*) sed -n '2,4p' "$0"; exit 125 ;;
  *) outside "$1" "$2" ;;
esac

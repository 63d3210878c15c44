#!/bin/bash
# lab.sh — a real systemd as PID 1 of new namespaces, at native speed, on a machine whose own PID 1 need not be systemd.
#   lab.sh up NAME [--tree] [--bind DIR]…          start one and wait until it has booted
#   lab.sh exec NAME -- CMD…                       run CMD in it, in a scope of its own; exits with CMD's status
#   lab.sh down NAME                               end it; nothing of it stays
#   lab.sh run [--tree] [--bind DIR]… -- CMD…      a fresh lab for one CMD; it goes when we go, however we go
# Without --tree its root is a copy-on-write view of this machine's own `/` (nothing to download). With --tree it is a fresh copy
# of a bookworm tree on an ext4 file system of its own: only there can the root be idmapped, as on a real host.
# --bind brings a directory of this machine in, at the same path, writable.
# Environment that reaches CMD: TERM, LANG, SANDBOX_*, RUST_*. Needs root, systemd, dbus, libpam-systemd, dbus-user-session.
#
# Each lab has a keeper: a process of ours outside it that starts it, waits for it and cleans up (cgroups, /run/lab-NAME).
# Mounts and the loop device live in the lab's own mount namespace and go with it. `run` holds the keeper on a leash, a pipe:
# the kernel closes it even when the owner is killed with SIGKILL. If the keeper itself is killed, the lab dies with it, and the next
# `up` or `run` sweeps up the rest.
set -eu
here=$(dirname "$(realpath "$0")")
# shellcheck source-path=SCRIPTDIR source=../tree.sh
. "$here/../tree.sh"
# shellcheck source-path=SCRIPTDIR source=cgroups.sh
. "$here/cgroups.sh"

die() { echo "lab: $*" >&2; exit 125; }

# --- the keeper -----------------------------------------------------------------------------------------------------------------

keep() { # keep NAME LEASH KIND [DIR…]: runs in the background, its output is the lab's console file
  local leash=$2 child watcher=; name=$1; shift 2   # name is global: the traps outlive this function
  trap 'kill -KILL "$child" 2>/dev/null' TERM
  trap 'clean "$name"' EXIT
  make_cgroups "$name"
  ( while read -r dir; do echo "$BASHPID" > "$dir/cgroup.procs"; done < "/run/lab-$name/cgroups"
    exec setpriv --pdeathsig KILL unshare --mount --pid --uts --ipc --net --cgroup --fork --kill-child=SIGKILL \
      bash "$here/init.sh" "$name" "$@" ) < /dev/null &
  child=$!
  release "$name" "$child" &
  if [ "$leash" = leash ]; then
    ( read -r _ || true; kill -TERM $$ ) <&0 &   # ends when the owner's end of the pipe is closed
    watcher=$!
  fi
  while kill -0 "$child" 2>/dev/null; do wait "$child" || true; done
  [ -z "$watcher" ] || kill "$watcher" 2>/dev/null || true
}

clean() { # clean NAME: also the second half of a keeper that was killed
  remove_cgroups "$1"
  rm -f "$tree_cache/lab-$1.img"
  rm -rf "/run/lab-$1"
}

is_keeper() { # is_keeper PID NAME: a pid may have been given to somebody else since
  tr '\0' ' ' 2>/dev/null < "/proc/$1/cmdline" | grep -q "lab.sh _keep $2 "
}

keeper_of() { cat "/run/lab-$1/keeper" 2>/dev/null || echo 0; }

sweep() { # labs whose keeper was killed
  local dir name
  for dir in /run/lab-*; do
    [ -e "$dir/keeper" ] || continue
    name=${dir#/run/lab-}
    is_keeper "$(keeper_of "$name")" "$name" || clean "$name"
  done
}

# --- the commands -----------------------------------------------------------------------------------------------------------------

parse() { # parse [--tree] [--bind DIR]… [-- CMD…]: sets kind, binds, command
  kind=cow binds=() command=()
  while [ $# -gt 0 ]; do
    case "$1" in
      --tree) kind=tree; shift ;;
      --bind) [ -d "${2:-}" ] || die "--bind: no directory ${2:-}"; check_bind "$(realpath "$2")"; shift 2 ;;
      --) shift; command=("$@"); return ;;
      *) die "what is '$1'? See the head of $0" ;;
    esac
  done
}

check_bind() { # a booting systemd works on these directories: bound in, it would work on the machine's own
  case "$1" in
    / | /tmp | /var | /var/tmp | /var/lib | /var/log | /run | /run/* | /etc | /etc/* | /dev | /dev/* | /proc* | /sys* | /usr | /usr/* | /root | /home)
      die "--bind $1: the lab's systemd would change the machine's own; bind a directory made for it" ;;
  esac
  binds+=("$1")
}

start() { # start NAME LEASH: with LEASH the write end of the pipe is left open in $leash
  local name=$1 image=cow scope=()
  [ "$(id -u)" = 0 ] || die "needs root"
  [ -x /lib/systemd/systemd ] || die "needs systemd installed (apt install systemd dbus libpam-systemd dbus-user-session)"
  sweep
  [ "$kind" = cow ] || image=$(bash "$here/../tree.sh" image bookworm lab) || die "no image of the bookworm tree"
  mkdir "/run/lab-$name" 2>/dev/null || die "$name is there already"
  if [ -d /run/systemd/system ]; then
    scope=(systemd-run --scope --quiet --collect -p Delegate=yes "--unit=lab-$name")
  fi
  : > "/run/lab-$name/console"
  exec {console}< "/run/lab-$name/console"   # readable still when the keeper has cleaned up after a failure
  local keeper=("${scope[@]}" bash "$here/lab.sh" _keep "$name" "$2" "$image" "${binds[@]}")
  if [ "$2" = leash ]; then
    exec {leash}> >(exec setsid "${keeper[@]}" > "/run/lab-$name/console" 2>&1)
  else
    setsid "${keeper[@]}" < /dev/null > "/run/lab-$name/console" 2>&1 &
  fi
  await_boot "$name"
}

await_boot() {
  local name=$1 deadline=$((SECONDS + ${SANDBOX_TEST_LAB_TIMEOUT:-90})) state=offline
  while [ $SECONDS -lt $deadline ]; do
    [ -d "/run/lab-$name" ] || break
    if [ -e "/run/lab-$name/keeper" ] && ! is_keeper "$(keeper_of "$name")" "$name"; then break; fi
    if [ -e "/run/lab-$name/pid" ]; then
      state=$(enter "$name" systemctl is-system-running 2>/dev/null || true)
      case "$state" in running | degraded) break ;; esac
    fi
    sleep 0.05
  done
  case "$state" in
    running) return ;;
    degraded) echo "lab: degraded: $(enter "$name" systemctl --failed --plain --no-legend | tr '\n' ';')" >&2; return ;;
  esac
  echo "lab: it did not boot (state '$state'); the end of its console:" >&2
  tail -n 20 <&"$console" >&2
  [ ! -d "/run/lab-$name" ] || down "$name"
  exit 125
}

enter() { # enter NAME CMD…: bare, as a process beside PID 1
  local pid
  pid=$(cat "/run/lab-$1/pid" 2>/dev/null) || die "no lab '$1'"; shift
  nsenter -t "$pid" -m -p -u -i -n -C -r -w -- "$@"
}

lab_exec() { # lab_exec NAME CMD…: replaces this process
  local name=$1 pid env=() variable dir; shift
  pid=$(cat "/run/lab-$name/pid" 2>/dev/null) || die "no lab '$name'"
  for variable in $(compgen -e); do
    case "$variable" in TERM | LANG | SANDBOX_* | RUST_*) env+=("$variable=${!variable}") ;; esac
  done
  # A scope, as a login session is one: the command is then in a cgroup that the lab's systemd knows. The death signal is for the
  # command, when the nsenter in front of it is killed.
  # shellcheck disable=SC2016  # for the inner shell, which gives 126 and 127 their meaning
  local inner='cd "$1" 2>/dev/null || cd /; shift; exec "$@"'
  # The controller hierarchies of v1 where systemd leaves a scope at the root: be at the lab's root there, not at the machine's.
  while read -r dir; do
    case "$dir" in /sys/fs/cgroup/systemd/*) continue ;; esac
    if [ -e "$dir/cgroup.controllers" ]; then
      # v2: at the root a process would bar systemd from its controllers, and from outside it may not be moved in (nsdelegate).
      [ -d "$dir/exec" ] || continue
      dir=$dir/exec
    fi
    echo $$ 2>/dev/null > "$dir/cgroup.procs" || true
  done < "/run/lab-$name/cgroups"
  exec nsenter -t "$pid" -m -p -u -i -n -C -r -w -- setpriv --pdeathsig TERM env -i \
    PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root USER=root LOGNAME=root "${env[@]}" \
    systemd-run --scope --quiet --collect --slice=user --unit="exec-$$-$RANDOM" -- \
    sh -c "$inner" sh "$PWD" "$@"
}

down() {
  local name=$1 pid _
  [ -d "/run/lab-$name" ] || die "no lab '$name'"
  pid=$(keeper_of "$name")
  if is_keeper "$pid" "$name"; then kill -TERM "$pid" 2>/dev/null || true; else clean "$name"; fi
  await_gone "$name"
}

await_gone() {
  local _
  for _ in $(seq 300); do
    [ -d "/run/lab-$1" ] || return 0
    sleep 0.05
  done
  die "$1 does not go away"
}

case "${1:-}" in
  up) name=${2:?NAME}; shift 2; parse "$@"; start "$name" free ;;
  exec) name=${2:?NAME}; shift 2; [ "${1:-}" != -- ] || shift; lab_exec "$name" "$@" ;;
  down) down "${2:?NAME}" ;;
  run)
    shift; parse "$@"; [ ${#command[@]} -gt 0 ] || die "run: no command"
    name=run-$$
    start "$name" leash
    status=0
    bash "$here/lab.sh" exec "$name" -- "${command[@]}" {leash}>&- || status=$?
    exec {leash}>&-
    await_gone "$name"
    exit "$status" ;;
  _keep) shift; echo $$ > "/run/lab-$1/keeper"; keep "$@" ;;
  *) sed -n '2,6p' "$0"; exit 125 ;;
esac

#!/bin/bash
# selftest.sh — what lab.sh promises: exact statuses, clean streams, and nothing left behind, however a lab ends.
set -u
# As in ../run.sh, which need not be the caller.
[ -n "${SANDBOX_TEST_SIGNALS:-}" ] || SANDBOX_TEST_SIGNALS=1 exec env --default-signal=HUP,INT,QUIT bash "$0" "$@"
here=$(dirname "$(realpath "$0")")
lab=$here/lab.sh
failed=0 passed=0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

check() { # check WHAT CMD…
  local what=$1; shift
  if "$@"; then passed=$((passed + 1)); else failed=$((failed + 1)); echo "FAILED: $what" >&2; fi
}

is() { [ "$1" = "$2" ] || { echo "  found '$1', expected '$2'" >&2; return 1; }; }

wait_for() { # wait_for SECONDS CMD…
  local end=$((SECONDS + $1)); shift
  until "$@"; do [ $SECONDS -lt $end ] || return 1; sleep 0.05; done
}

namespaces_of() { readlink "/proc/$1/ns/pid" "/proc/$1/ns/mnt"; }

leftovers() { # leftovers NAME NAMESPACES: prints whatever is still there of a lab
  ls -d "/run/lab-$1" 2>/dev/null
  find /sys/fs/cgroup -maxdepth 6 -type d -name "lab-$1" 2>/dev/null
  grep "lab-$1" /proc/self/mountinfo
  losetup -n -l -O NAME,BACK-FILE 2>/dev/null | grep "lab-$1[. ]"
  find /proc/[0-9]*/ns -maxdepth 1 \( -name pid -o -name mnt \) -printf '%p %l\n' 2>/dev/null | grep -F "$2"
  pgrep -af "lab.sh _keep $1 "
}

nothing_left() { [ -z "$(leftovers "$@")" ]; }

gone() { wait_for 60 nothing_left "$@" || { leftovers "$@" >&2; return 1; }; }

statuses() { # in one lab that is up
  local out status
  out=$(bash "$lab" exec "$1" -- sh -c 'echo out; echo err >&2; exit 42' 2> "$work/err"); status=$?
  check "exit status" is "$status" 42
  check "stdout" is "$out" out
  check "stderr" is "$(cat "$work/err")" err
  bash "$lab" exec "$1" -- /no/such/command 2> /dev/null
  check "command not found" is $? 127
  # shellcheck disable=SC2016  # $$ of the inner shell
  (bash "$lab" exec "$1" -- sh -c 'kill -TERM $$') 2> /dev/null
  check "ended by SIGTERM" is $? 143
  head -c 1000000 /dev/urandom > "$work/in"
  bash "$lab" exec "$1" -- cat < "$work/in" > "$work/out"
  check "a million bytes through stdin and stdout" cmp "$work/in" "$work/out"
  script -qec "bash $lab exec $1 -- sh -c 'test -t 0 && test -t 1'" /dev/null > /dev/null
  check "a terminal stays one" is $? 0
  check "the user manager of tester" is running "$(bash "$lab" exec "$1" -- \
    setpriv --reuid 1000 --regid 1000 --clear-groups env XDG_RUNTIME_DIR=/run/user/1000 systemctl --user is-system-running)"
  check "tester may open /dev/fuse" bash "$lab" exec "$1" -- setpriv --reuid 1000 --regid 1000 --clear-groups sh -c ': < /dev/fuse'
  check "--bind" is "$(bash "$lab" exec "$1" -- cat "$work/mark")" "$1"
  check "own hostname" is "$(bash "$lab" exec "$1" -- hostname)" bed
}

up_and_down() { # up_and_down NAME [--tree]
  local name=$1 namespaces; shift
  echo "$name" > "$work/mark"
  bash "$lab" up "$name" "$@" --bind "$work" || { check "up $*" false; return; }
  namespaces=$(namespaces_of "$(cat "/run/lab-$name/pid")")
  check "a second one of that name is refused" is "$(bash "$lab" up "$name" 2>&1)" "lab: $name is there already"
  statuses "$name"
  check "down $*" bash "$lab" down "$name"
  check "nothing is left after down $*" gone "$name" "$namespaces"
}

killed_owner() { # killed_owner SIGNAL [--tree]: the owner is the `run` process
  local signal=$1 owner name namespaces; shift
  bash "$lab" run "$@" -- sleep 1000 & owner=$!
  name=run-$owner
  wait_for 60 [ -e "/run/lab-$name/pid" ] || { check "run for SIG$signal" false; return; }
  namespaces=$(namespaces_of "$(cat "/run/lab-$name/pid")")
  wait_for 60 pgrep -P "$owner" nsenter > /dev/null
  kill -s "$signal" "$owner"
  wait "$owner" 2> /dev/null
  check "nothing is left after SIG$signal to the owner $*" gone "$name" "$namespaces"
}

killed_keeper() {
  local name=selftest-keeper-$$ namespaces
  bash "$lab" up "$name" --tree
  namespaces=$(namespaces_of "$(cat "/run/lab-$name/pid")")
  kill -KILL "$(cat "/run/lab-$name/keeper")"
  check "the lab dies with its keeper" wait_for 10 no_process_in "$namespaces"
  bash "$lab" run -- true
  check "the next start sweeps up" gone "$name" "$namespaces"
}

no_process_in() { ! find /proc/[0-9]*/ns -maxdepth 1 -name pid -printf '%l\n' 2>/dev/null | grep -qxF "$(head -n1 <<< "$1")"; }

damage() {
  bash "$lab" run --bind /tmp -- true 2> /dev/null
  check "the machine's own /tmp is refused as a bind" is $? 125
  bash "$lab" run --tree --bind "$work" -- true
  check "a bind below /tmp is not emptied at boot" [ -e "$work/mark" ]
  bash "$lab" run --tree -- sh -c 'rm -rf /usr/share /etc/passwd'
  check "a damaged tree is whole again" bash "$lab" run --tree -- grep -q tester /etc/passwd
  bash "$lab" run -- touch /lab-was-here
  check "the machine's own / is not written" [ ! -e /lab-was-here ]
}

bash "$lab" run -- sh -c 'exit 9'
check "run gives the status" is $? 9
up_and_down "selftest-cow-$$"
up_and_down "selftest-tree-$$" --tree
for signal in TERM HUP KILL; do killed_owner "$signal" --tree; done
killed_owner KILL
killed_keeper
damage
echo "lab selftest: $passed passed, $failed failed"
[ "$failed" = 0 ]

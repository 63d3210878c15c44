#!/bin/bash
# bench-order.sh — writes packaging/start.ld: which functions a start executes, for the linker to lay them side by side; as root.
#   tests/bench.sh order
# A start that needs fewer pages of code has fewer page faults, each some µs: they were a twentieth of it. Builds the release program
# with its symbols, and in the tree lab sets a breakpoint on each function, in all processes of a few `run` with limits and an `exec`.
# To be done again after larger changes. A function that is not there any more, or has a new name, only misses its place.
set -euo pipefail

called() { # called STAGE COMMAND…: by COMMAND's threads, into STAGE/addresses
  local stage=$1
  rm -f "$stage/log"
  "$stage/inject" "$stage/log" all entries "$stage/functions" -- "${@:2}"
  # The tracer is nobody's child here.
  soon 100 test -e "$stage/log"
  cat "$stage/log" >> "$stage/addresses"
}

soon() { # soon TENTHS COMMAND…: waits so long at most until it succeeds
  local tenths=$1
  shift
  until "$@" 2> /dev/null; do
    [ $((tenths--)) -gt 0 ] || { echo "bench-order.sh: not within its time: $*" >&2; exit 125; }
    sleep 0.1
  done
}

if [ "${1:-}" = inside ]; then
  stage=$2
  start=("$stage/sandbox" run -p CPUShares=600 -p MemoryMax=500M -- true)
  "${start[@]}"   # the first one makes directories
  # Who is waited for last is a matter of chance.
  for _ in 1 2 3 4; do called "$stage" "${start[@]}"; done
  "$stage/sandbox" run --quiet --unit order -- sleep infinity &
  soon 300 "$stage/sandbox" exec order -- true
  called "$stage" "$stage/sandbox" exec order -- true
  "$stage/sandbox" stop order > /dev/null
  wait
  exit
fi
here=$(dirname "$(realpath "$0")")
cd "$here/.."
# shellcheck source-path=SCRIPTDIR source=lab/staged.sh
. tests/lab/staged.sh
# shellcheck source-path=SCRIPTDIR source=rust.sh
. tests/rust.sh
SANDBOX_INJECT=${SANDBOX_INJECT:-$(injector)}
unset SANDBOX_BIN
# Not by the profile: every setting of that changes the hashes in all names.
export RUSTFLAGS="$static_flags -C strip=none" CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}/order
stage_program release
install -m755 "$SANDBOX_INJECT" "$stage/inject"
install -m755 "$here/bench-order.sh" "$stage/script"
nm --defined-only "$stage/sandbox" | awk '$2 ~ /^[tTwWi]$/ { print $1 }' > "$stage/functions"
tests/lab/lab.sh run --tree --bind "$stage" -- bash "$stage/script" inside "$stage"
libc=$(rustc --print sysroot)/lib/rustlib/$(program_target)/lib/self-contained/libc.a   # musl's comes with Rust
[ -e "$libc" ] || libc=$(cc -print-file-name=libc.a)
python3 tests/bench/order.py "$stage/sandbox" "$libc" < "$stage/addresses" > "$stage/start.ld"
mv "$stage/start.ld" packaging/start.ld

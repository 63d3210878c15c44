# shellcheck shell=bash
# Sourced by what runs the program in a lab, outside of it and in the project's directory.

# stage_program PROFILE: makes $stage, a directory with the program, `sandbox`, that goes when the script ends. SANDBOX_BIN names the
# program; else it is built, static, as a `release` or `debug` one.
stage_program() {
  local target options=()
  [ "$(id -u)" = 0 ] || { echo "${0##*/} needs root" >&2; exit 125; }
  # With it errors are longer, also Rust's own, and take time to make: what is looked at, and measured, is the program without, as in the VMs.
  unset RUST_BACKTRACE
  if [ -z "${SANDBOX_BIN:-}" ]; then
    # shellcheck source-path=SCRIPTDIR source=../rust.sh
    . tests/rust.sh
    find_cargo
    target=$(program_target)
    [ "$1" = debug ] || options=("--$1")
    RUSTFLAGS=${RUSTFLAGS:-$static_flags} as_owner cargo build -q "${options[@]}" --target "$target"
    SANDBOX_BIN=${CARGO_TARGET_DIR:-target}/$target/$1/sandbox
  fi
  stage=$(mktemp -d /var/tmp/sandbox-test-XXXXXX)
  chmod 755 "$stage"
  trap 'rm -rf "$stage"' EXIT
  install -m755 "$SANDBOX_BIN" "$stage/sandbox"
}

# run_staged SCRIPT ARG…: runs `SCRIPT inside STAGE ARG…` in a tree lab; STAGE is a directory with the program, `sandbox`, and
# peers.sh, that goes afterwards. SANDBOX_BIN names the program; else the release build is made. Called in the project's directory, as
# root. With staged_in=view the lab's root is a view of this machine's own, with the programs that are installed here.
run_staged() {
  local script=$1 status=0 root=(--tree)
  shift
  stage_program release
  install -m755 "$script" "$stage/script"
  [ -z "${SANDBOX_INJECT:-}" ] || install -m755 "$SANDBOX_INJECT" "$stage/inject"
  install -m644 tests/bench/peers.sh "$stage/peers.sh"
  [ "${staged_in:-tree}" = tree ] || root=()
  tests/lab/lab.sh run "${root[@]}" --bind "$stage" -- bash "$stage/script" inside "$stage" "$@" || status=$?
  exit "$status"
}

# injector: builds the tracer of tests/inject, static, and prints its path.
injector() {
  # shellcheck source-path=SCRIPTDIR source=../rust.sh
  . tests/rust.sh
  RUSTFLAGS=${RUSTFLAGS:-$static_flags} test_program "$(host_target)" inject
}

# parse_counted HELP "WORD…" DEFAULT [NUMBER [WORD…]]: the arguments of a script that does each of some things so often: sets `number`, and
# `chosen`, all words unless some are named. Anything else than a number prints the lines HELP, as sed(1) counts them, of the script's head.
parse_counted() {
  local help=$1 all=$2
  number=${4:-$3}
  case "$number" in *[!0-9]*) sed -n "${help}p" "$0"; exit 125 ;; esac
  # shellcheck disable=SC2034  # for who sources this
  if [ $# -gt 4 ]; then chosen=("${@:5}"); else read -ra chosen <<< "$all"; fi
}

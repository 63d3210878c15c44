# shellcheck shell=bash
# Sourced by what measures or breaks the release program in the tree lab.

# run_staged SCRIPT ARG…: runs `SCRIPT inside STAGE ARG…` in a tree lab; STAGE is a directory with the program, `sandbox`, and
# peers.sh, that goes afterwards. SANDBOX_BIN names the program; else the release build is made. Called in the project's directory, as
# root. With staged_in=view the lab's root is a view of this machine's own, with the programs that are installed here.
run_staged() {
  local script=$1 target=x86_64-unknown-linux-gnu stage status=0 root=(--tree)
  shift
  [ "$(id -u)" = 0 ] || { echo "${script##*/} needs root" >&2; exit 125; }
  if [ -z "${SANDBOX_BIN:-}" ]; then
    RUSTFLAGS="-C target-feature=+crt-static" cargo build --release --target "$target"
    SANDBOX_BIN=${CARGO_TARGET_DIR:-target}/$target/release/sandbox
  fi
  stage=$(mktemp -d /var/tmp/sandbox-stage-XXXXXX)
  # shellcheck disable=SC2064  # expanded now, on purpose
  trap "rm -rf '$stage'" EXIT
  install -m755 "$SANDBOX_BIN" "$stage/sandbox"
  install -m755 "$script" "$stage/script"
  install -m644 tests/bench/peers.sh "$stage/peers.sh"
  [ "${staged_in:-tree}" = tree ] || root=()
  tests/lab/lab.sh run "${root[@]}" --bind "$stage" -- bash "$stage/script" inside "$stage" "$@" || status=$?
  exit "$status"
}

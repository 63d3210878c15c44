# shellcheck shell=bash
# Sourced by run.sh, bench-report.sh, lab/staged.sh and examples/quickstart.sh, as root and in the project's directory: a Rust that is new enough,
# for the user of the checkout, and how the program is built with it. Who sources it has a function `die`.

# One static file at fixed addresses: README.md, "Install".
# shellcheck disable=SC2034  # for who sources this
static_flags='-C target-feature=+crt-static -C relocation-model=static'
# Enough for a panic's message. Here, since what differs in it shares nothing that was built: tests/crash.sh after tests/run.sh took minutes.
export CARGO_PROFILE_DEV_DEBUG=line-tables-only

owner_home() { getent passwd "${SUDO_UID:-0}" | cut -d: -f6; }

as_owner() { # as the user of the checkout, so that a run with sudo leaves no files of root in it
  if [ "${SUDO_UID:-0}" = 0 ]; then "$@"; return; fi
  setpriv --reuid "$SUDO_UID" --regid "${SUDO_GID:?}" --init-groups env "HOME=$(owner_home)" "$@"
}

new_enough() { [ "$(printf '%s\n' "$1" "$2" | sort -V | head -n1)" = "$1" ]; } # new_enough WANTED FOUND

find_cargo() { # one that is new enough comes into the PATH: the user's own, which stays as it is; where there is none it is installed
  local wanted bin
  wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
  bin=${CARGO_HOME:-$(owner_home)/.cargo}/bin
  # For what is run as root with the user's own toolchain.
  [ "${SUDO_UID:-0}" = 0 ] || export RUSTUP_HOME="${RUSTUP_HOME:-$(owner_home)/.rustup}"
  export PATH="$PATH:$bin"
  ! has_rust "$wanted" || return 0
  PATH="$bin:$PATH"   # before a distribution's, which is too old
  ! has_rust "$wanted" || return 0
  if command -v rustup > /dev/null && as_owner rustup toolchain list 2> /dev/null | grep -q -- -; then
    die "the cargo of this user's rustup (${rust_found:-none}) is older than $wanted: rustup update stable"
  fi
  install_rust "$wanted"
  has_rust "$wanted" || die "Rust was installed, but cargo is ${rust_found:-not there}, and $wanted is needed"
}

has_rust() { # has_rust WANTED: sets $rust_found
  rust_found=$(as_owner cargo --version 2> /dev/null | cut -d' ' -f2) || true
  [ -n "$rust_found" ] && new_enough "$1" "$rust_found"
}

host_target() { as_owner rustc -vV | sed -n 's/^host: //p'; }

musl=x86_64-unknown-linux-musl

# What the program is built for: with musl, where Rust and a C compiler have it, a start takes less; else this machine's own libc.
program_target() {
  if has_musl && command -v musl-gcc > /dev/null; then echo "$musl"; else host_target; fi
}

has_musl() { [ -d "$(as_owner rustc --print sysroot)/lib/rustlib/$musl/lib" ]; } # Rust's part of it

install_musl() { # where it can be had: Debian's own Rust has none
  local sysroot
  [ "$(host_target)" = "${musl%-musl}-gnu" ] || return 0
  sysroot=$(as_owner rustc --print sysroot)
  if ! has_musl && command -v rustup > /dev/null && [[ $sysroot = */toolchains/* ]]; then
    as_owner rustup -q target add "$musl" || tell "rustup added no $musl, a start will take a little longer"
  fi
  if has_musl && ! command -v musl-gcc > /dev/null && command -v apt-get > /dev/null; then
    apt-get -qq update || true
    (rust_packages musl-tools) || tell "without musl-gcc a start will take a little longer"
  fi
}

test_program() { # test_program TARGET NAME: builds a program of tests/ and prints its path
  as_owner cargo test --target "$1" --test "$2" --no-run --message-format=json |
    jq -r --arg name "$2" 'select(.executable != null and .target.name == $name) | .executable'
}

tell() { echo "${0##*/}: $*"; }

install_rust() { # install_rust WANTED: Debian's where that is new enough; else with rustup, Debian's or the one from rust-lang.org
  local wanted=$1 candidate
  if command -v apt-get > /dev/null; then
    apt-get -qq update || true   # what is missing then says so itself
    rust_packages ca-certificates
    candidate=$(candidate_of rustc)
    if [ -n "$candidate" ] && new_enough "$wanted" "$candidate"; then
      tell "installing Rust $candidate: cargo, rustfmt and rust-clippy"
      rust_packages cargo rustfmt rust-clippy
      return
    fi
    # Debian's rustup would remove Debian's cargo.
    if ! command -v rustup cargo rustc > /dev/null && [ -n "$(candidate_of rustup)" ]; then
      tell "installing the package rustup"
      rust_packages rustup
    fi
  fi
  if command -v rustup > /dev/null; then
    tell "installing Rust with rustup into ${RUSTUP_HOME:-$(owner_home)/.rustup}"
    as_owner rustup -q toolchain install stable --profile minimal -c clippy,rustfmt --no-self-update ||
      die "rustup installed no toolchain, see above"
    as_owner rustup -q default stable
  else
    with_rustup_init
  fi
}

rust_packages() {
  DEBIAN_FRONTEND=noninteractive apt-get -qq -y install --no-install-recommends "$@" < /dev/null > /dev/null || die "apt-get could not install $*"
}

candidate_of() { apt-cache policy "$1" | awk '$1 == "Candidate:" && $2 != "(none)" { print $2 }'; }

with_rustup_init() {
  local url dir status=0
  url=https://static.rust-lang.org/rustup/dist/$(uname -m)-unknown-linux-gnu/rustup-init
  tell "installing Rust with rustup into ${CARGO_HOME:-$(owner_home)/.cargo} ($url)"
  if ! command -v curl wget > /dev/null && command -v apt-get > /dev/null; then rust_packages curl; fi
  dir=$(as_owner mktemp -d /var/tmp/rustup-XXXXXX)
  run_rustup_init "$url" "$dir" || status=$?
  rm -rf "$dir"
  [ "$status" = 0 ] || die "rustup could not install Rust, see above; by hand: https://rustup.rs"
}

run_rustup_init() { # run_rustup_init URL DIR
  download "$1" "$2/rustup-init" && download "$1.sha256" "$2/sha256" || return
  [ "$(sha256sum < "$2/rustup-init" | cut -d' ' -f1)" = "$(cut -d' ' -f1 "$2/sha256")" ] ||
    { tell "what came from $1 has not the checksum $(cut -d' ' -f1 "$2/sha256")" >&2; return 1; }
  as_owner chmod 755 "$2/rustup-init"
  # A distribution's older cargo, which stays, is no reason for it to stop.
  as_owner env RUSTUP_INIT_SKIP_PATH_CHECK=yes "$2/rustup-init" -y -q --profile minimal -c clippy -c rustfmt --no-modify-path > /dev/null
}

download() { # download URL FILE
  if command -v curl > /dev/null; then
    as_owner curl -fsSL --retry 3 --proto =https -o "$2" "$1"
  else
    as_owner wget -q -O "$2" "$1" || { tell "wget could not fetch $1" >&2; return 1; }
  fi
}

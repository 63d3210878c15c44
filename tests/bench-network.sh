#!/bin/bash
# bench-network.sh — what goes through a published port, in the lab on a view of this machine's own `/`; as root.
#   tests/bench.sh network [ROUNDS [SECONDS]]     5 rounds of 1 s each way, about 80 s in all
# A second network namespace, joined by veth, is the outside. A server listens in each of: the host's network (sandbox --network
# host), sandbox --network pasta, pasta alone with its own defaults, and podman --network pasta. Where this machine's podman is older
# than 5, which is the first to have that for who is root in a user namespace, Debian 13's is taken, from a tree that is made once (35 s,
# in $SANDBOX_TEST_CACHE); its pasta is another than ours then, so sandbox and pasta alone are measured with that one, too. A client
# outside takes what it can get for so long, and gives; in each round all are measured one after the other. Printed: median MB/s and the worst
# (a stall shows there), and ours against the others. Nothing here is a bar. Installs what is missing: passt, uidmap, python3.
# SANDBOX_BIN names the program; else the release build is made.
set -euo pipefail

server='
import socket, sys
tcp = socket.create_server(("", int(sys.argv[1])), family=socket.AF_INET6, dualstack_ipv6=True)
print("ready", flush=True)
block = bytes(range(256)) * 4096
while True:
    connection, _ = tcp.accept()
    try:
        if connection.recv(1) == b"g":
            while True: connection.sendall(block)
        while connection.recv(1 << 20): pass
        connection.sendall(b"end")
    except OSError: pass
    connection.close()
'
client='
import socket, sys, time
port, order, seconds = int(sys.argv[1]), sys.argv[2], float(sys.argv[3])
connection = socket.create_connection(("10.98.0.2", port))
connection.sendall(order.encode())
connection.settimeout(seconds)
begin, moved, block = time.monotonic(), 0, bytes(1 << 20)
try:
    while (spent := time.monotonic() - begin) < seconds:
        step = len(connection.recv(1 << 20)) if order == "g" else connection.send(block)
        assert step > 0, "it was closed"
        moved += step
except TimeoutError: spent = time.monotonic() - begin
if order == "t":
    connection.settimeout(None)
    connection.shutdown(socket.SHUT_WR)
    assert connection.recv(3) == b"end"
    spent = time.monotonic() - begin
print(moved / 1e6 / spent)
'

outside() { # the world beyond this machine
  ip netns add benchworld
  ip link add bench0 type veth peer name bench1 netns benchworld
  ip link set lo up
  ip addr add 10.98.0.2/24 dev bench0
  ip link set bench0 up
  ip -n benchworld addr add 10.98.0.1/24 dev bench1
  ip -n benchworld link set bench1 up
  ip route show default | grep -q . || ip route add default via 10.98.0.1
}

serve() { # serve NAME PORT COMMAND…: in the background until the end
  local name=$1 port=$2 log=/var/tmp/bench-$1.log
  shift 2
  "$@" < /dev/null > "$log" 2>&1 &
  pids+=($!)
  for _ in $(seq 100); do
    if grep -q ready "$log"; then
      names+=("$name") ports+=("$port")
      return
    fi
    kill -0 "${pids[-1]}" 2> /dev/null || break
    sleep 0.1
  done
  echo "$name is left out, it does not run here: $(tail -n 1 "$log")"
}

pasta_alone() { # pasta_alone NAME PORT COMMAND…: COMMAND, perhaps none, is put before pasta
  local name=$1 port=$2
  shift 2
  ip netns add "bench-$name"
  ip -n "bench-$name" link set lo up
  "$@" pasta -q --netns-only --runas 0 --config-net --no-map-gw --tcp-ports "$port:7" --netns "/run/netns/bench-$name" 2> /dev/null || true
  serve "$name" "$port" ip netns exec "bench-$name" python3 -c "$server" 7
}

in_sandbox() { # in_sandbox PORT FLAG…: the words that run the server behind pasta, in `words`
  words=("$sandbox" run --network pasta --publish "$1:7" -q "${@:2}" -- python3 -c "$server" 7)
}

in_podman() { # in_podman PORT: likewise. podman refuses pasta to root but in a user namespace, which has the same IDs here
  words=(unshare --user --mount '--map-users=0,0,65536' '--map-groups=0,0,65536' --setuid 0 --setgid 0
    env PODMAN_IGNORE_CGROUPSV1_WARNING=1 podman --root "$stage/podman/root" --runroot "$stage/podman/run" --tmpdir "$stage/podman/tmp"
    --storage-driver=vfs --cgroup-manager=cgroupfs --events-backend=none
    run --rm --cgroups=disabled --network pasta --publish "$1:7" --rootfs "$stage/view:O" python3 -c "$server" 7)
}

in_newer() { # in_newer CMD…: with Debian 13's tree as the root, in a mount namespace of its own, with the lab's systemd and $stage
  # shellcheck disable=SC2016  # for the inner shell
  unshare --mount bash -euc '
    stage=$1; shift
    mkdir -p "$stage/newer$stage"
    mount --bind "$stage/newer" "$stage/newer"
    cd "$stage/newer"
    pivot_root . mnt
    for directory in /proc /sys /dev /run "$stage"; do mount --rbind "/mnt$directory" "$directory"; done
    cd /
    exec "$@"' newer "$stage" "$@"
}

versions() { # versions PACKAGE…: pasta of before 2024 does not know its own
  dpkg-query -W -f '${Package} ${Version}\n' "$@" | paste -s -d, | sed 's/,/, /g'
}

servers() {
  local etc=/etc
  [ ${#newer[@]} = 0 ] || etc=$stage/newer/etc
  echo root:0:65536 | tee -a "$etc/subuid" >> "$etc/subgid"
  # The root alone, without what is mounted on it: that is hidden from a user namespace, and no overlay there may lie over it.
  mkdir "$stage/view" "$stage/podman"
  mount --bind / "$stage/view"
  serve host 7000 "$sandbox" run --network host -q -- python3 -c "$server" 7000
  in_sandbox 7001
  serve sandbox 7001 "${words[@]}"
  pasta_alone pasta 7002
  in_podman 7003
  serve podman 7003 "${newer[@]}" "${words[@]}"
  [ ${#newer[@]} -gt 0 ] || return 0
  in_sandbox 7004 --rootfs "$stage/view"
  serve sandbox-newer 7004 in_newer "${words[@]}"
  pasta_alone pasta-newer 7005 in_newer
}

table() {
  sort -k1,1 -k2,2 -k3,3n /var/tmp/rates | awk '
    function flush() {
      if (n) { m[name, way] = n % 2 ? a[(n + 1) / 2] : (a[n / 2] + a[n / 2 + 1]) / 2; least[name, way] = a[1] }
      n = 0
    }
    { if ($1 != name || $2 != way) { flush(); name = $1; way = $2 } a[++n] = $3; seen[$1] = 1 }
    END {
      flush()
      printf "%-14s %12s %12s %12s %12s\n", "MB/s", "out, median", "out, worst", "in, median", "in, worst"
      n = split("host sandbox pasta podman sandbox-newer pasta-newer", order)
      for (i = 1; i <= n; i++) if (order[i] in seen)
        printf "%-14s %12.0f %12.0f %12.0f %12.0f\n", order[i], m[order[i], "g"], least[order[i], "g"], m[order[i], "t"], least[order[i], "t"]
      for (i = 1; i <= n; i++) if (order[i] in seen && order[i] != "sandbox")
        printf "sandbox / %s: %.2f out, %.2f in\n", order[i], m["sandbox", "g"] / m[order[i], "g"], m["sandbox", "t"] / m[order[i], "t"]
    }'
}

inside() { # inside STAGE ROUNDS SECONDS
  local i way
  stage=$1 sandbox=$1/sandbox names=() ports=() pids=() words=() newer=()
  [ ! -d "$stage/newer" ] || newer=(in_newer)
  # shellcheck source-path=SCRIPTDIR source=bench/peers.sh
  . "$stage/peers.sh"
  let_crun_start
  trap 'kill "${pids[@]}" 2> /dev/null || true' EXIT
  outside
  servers
  echo "Linux $(uname -r); sandbox and pasta: $(versions passt); podman and newer: $("${newer[@]}" bash -c "$(declare -f versions); versions podman passt")"
  echo "$2 rounds of $3 s each way, load $(cut -d' ' -f1 /proc/loadavg)"
  for _ in $(seq "$2"); do
    for i in "${!names[@]}"; do
      for way in g t; do
        echo "${names[i]} $way $(ip netns exec benchworld python3 -c "$client" "${ports[i]}" "$way" "$3")" >> /var/tmp/rates
      done
    done
  done
  table
}

if [ "${1:-}" = inside ]; then inside "${@:2}"; exit; fi

# --- outside ----------------------------------------------------------------------------------------------------------------------

install_missing() {
  local program missing=()
  for program in pasta:passt newuidmap:uidmap python3:python3 mmdebstrap:mmdebstrap; do
    command -v "${program%:*}" > /dev/null || missing+=("${program#*:}")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  apt-get -qq update
  DEBIAN_FRONTEND=noninteractive apt-get -qq -y install --no-install-recommends "${missing[@]}" < /dev/null > /dev/null
}

own_podman_is_new() { [ "$(printf '%s\n' 5 "$(podman --version 2> /dev/null | cut -d' ' -f3)" | sort -V | head -n 1)" = 5 ]; }

newer_tarball() { # prints the path of the tar of Debian 13 with its podman
  local packages=podman,crun,passt,uidmap out
  out=$tree_cache/trees/podman-$(declare -f newer_tarball | sha256sum | cut -c1-12).tar
  mkdir -p "$tree_cache/trees"
  (
    flock 9
    [ ! -e "$out" ] || exit 0
    echo "building a tree with podman" >&2
    tree_forget 'podman-????????????.tar'
    # No security archive, as in tree.sh.
    # shellcheck disable=SC2016  # $1 is for mmdebstrap's shell
    mmdebstrap --quiet --variant=minbase --include=$packages --dpkgopt='path-exclude=/usr/share/doc/*' \
      --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
      --setup-hook='sed -i /security/d "$1/etc/apt/sources.list"' \
      --customize-hook='rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/*.bin' trixie "$tree_cache/trees/.podman.tmp.tar" >&2
    mv "$tree_cache/trees/.podman.tmp.tar" "$out"
  ) 9> "$tree_cache/trees/.podman.lock"
  echo "$out"
}

here=$(dirname "$(realpath "$0")")
cd "$here/.."
# shellcheck source-path=SCRIPTDIR source=lab/staged.sh
. "$here/lab/staged.sh"
# shellcheck source-path=SCRIPTDIR source=tree.sh
. "$here/tree.sh"
stage_program release
install_missing
if ! own_podman_is_new; then
  tarball=$(newer_tarball)
  mkdir "$stage/newer"
  tar -xf "$tarball" -C "$stage/newer" --numeric-owner
fi
install -m755 "$here/bench-network.sh" "$stage/script"
install -m644 "$here/bench/peers.sh" "$stage/peers.sh"
tests/lab/lab.sh run --bind "$stage" -- bash "$stage/script" inside "$stage" "${1:-5}" "${2:-1}"

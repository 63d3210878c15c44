#!/bin/bash
# bench-network.sh — what goes through a published port, in the lab on this machine's own `/` (podman is there); as root.
#   tests/bench.sh network [ROUNDS [MIB]]     5 rounds of 512 MiB each way
# A second network namespace, joined by veth, is the outside. A server listens in each of: the host's network (sandbox --network
# host), sandbox --network pasta, pasta alone with its own defaults, and podman with pasta where that podman knows it. A client
# outside takes so many MiB and gives as many; in each round all are measured one after the other. Printed: median MB/s and the worst
# (a stall shows there), and ours against the others. Nothing here is a bar.
# SANDBOX_BIN names the program; else the release build is made.
set -euo pipefail

server='
import socket, sys
tcp = socket.create_server(("", int(sys.argv[1])), family=socket.AF_INET6, dualstack_ipv6=True)
print("ready", flush=True)
block = bytes(range(256)) * 4096
while True:
    connection, _ = tcp.accept()
    order = connection.recv(9)
    if order[:1] == b"g":
        for _ in range(int(order[1:])): connection.sendall(block)
    else:
        left = int(order[1:]) << 20
        while left: left -= len(connection.recv(1 << 20)) or left
    connection.sendall(b"end")
    connection.close()
'
client='
import socket, sys, time
port, order, mib = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
connection = socket.create_connection(("10.98.0.2", port), timeout=300)
begin, got = time.monotonic(), 0
connection.sendall(b"%s%08d" % (order.encode(), mib))
if order == "t":
    for _ in range(mib): connection.sendall(bytes(1 << 20))
while data := connection.recv(1 << 20): got += len(data)
assert got == (3 if order == "t" else 3 + (mib << 20)), got
print(mib * 1.048576 / (time.monotonic() - begin))
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

servers() {
  serve host 7000 "$sandbox" run --network host -q -- python3 -c "$server" 7000
  serve sandbox 7001 "$sandbox" run --network pasta --publish 7001:7 -q -- python3 -c "$server" 7
  ip netns add benchinside
  ip -n benchinside link set lo up
  pasta -q --netns-only --runas 0 --config-net --no-map-gw --tcp-ports 7002:7 --netns /run/netns/benchinside 2> /dev/null || true
  serve pasta 7002 ip netns exec benchinside python3 -c "$server" 7
  if command -v podman > /dev/null; then
    serve podman 7003 podman --storage-driver=vfs --cgroup-manager=cgroupfs run --rm --network pasta --publish 7003:7 --rootfs /:O \
      python3 -c "$server" 7
  fi
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
      printf "%-10s %12s %12s %12s %12s\n", "MB/s", "out, median", "out, worst", "in, median", "in, worst"
      split("host sandbox pasta podman", order)
      for (i = 1; i <= 4; i++) if (order[i] in seen)
        printf "%-10s %12.0f %12.0f %12.0f %12.0f\n", order[i], m[order[i], "g"], least[order[i], "g"], m[order[i], "t"], least[order[i], "t"]
      for (i = 1; i <= 4; i++) if (order[i] in seen && order[i] != "sandbox")
        printf "sandbox / %s: %.2f out, %.2f in\n", order[i], m["sandbox", "g"] / m[order[i], "g"], m["sandbox", "t"] / m[order[i], "t"]
    }'
}

inside() { # inside STAGE ROUNDS MIB
  local i way
  sandbox=$1/sandbox names=() ports=() pids=()
  trap 'kill "${pids[@]}" 2> /dev/null || true' EXIT
  outside
  servers
  echo "$(uname -r), $(pasta --version | head -n 1), $2 rounds of $3 MiB, load $(cut -d' ' -f1 /proc/loadavg)"
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
here=$(dirname "$(realpath "$0")")
cd "$here/.."
# shellcheck source-path=SCRIPTDIR source=lab/staged.sh
. "$here/lab/staged.sh"
staged_in=view
run_staged "$here/bench-network.sh" "${1:-5}" "${2:-512}"

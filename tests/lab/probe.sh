#!/bin/bash
# probe.sh — one program with the attempts of the escape table (probe.c), run as root inside by `sandbox run`, by crun with the container
# that `crun spec` describes, and by `docker run` with Docker's defaults, on one root directory, in the lab. Prints what each attempt came to.
# Ends with 1 when one succeeds in the sandbox.
#   tests/lab/probe.sh       needs root, crun, docker.io, gcc; SANDBOX_BIN names the program, else the debug build is made
set -euo pipefail
here=$(dirname "$(realpath "$0")")

# --- in the lab -------------------------------------------------------------------------------------------------------------------

in_crun() {
  local bundle=$stage/bundle
  mkdir "$bundle"
  (cd "$bundle" && crun spec &&
    jq '.process.terminal = false | .process.args = ["/probe"] | .root.path = "'"$stage/root"'" | .mounts += [{"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"}]' \
      config.json > new && mv new config.json)
  # It refuses cgroup v1 beside v2, which a lab may have; none of the attempts depends on its cgroup.
  # shellcheck disable=SC2016  # the inner shell's
  unshare --mount sh -c 'umount /sys/fs/cgroup/unified 2> /dev/null; exec crun --cgroup-manager=disabled run --bundle "$0" probe' "$bundle"
}

in_docker() {
  mkdir -p /etc/docker
  echo '{"storage-driver":"overlay2","iptables":false,"ip6tables":false,"bridge":"none","data-root":"'"$stage/docker"'"}' > /etc/docker/daemon.json
  systemctl start docker || { journalctl --no-pager -u docker -n 20 >&2; exit 1; }
  tar -C "$stage/root" -c . | docker import - probe:1 > /dev/null
  docker run --rm --network none --tmpfs /tmp:dev,exec probe:1 /probe
  systemctl stop docker docker.socket containerd
}

inside() {
  stage=$1
  cd "$stage"
  mkdir -p root/{tmp,proc,sys,dev,etc}
  cp probe root/probe
  mknod -m 666 root/node-in-a-layer c 1 5
  # What the attempts would reach outside: a socket with an abstract name, and a directory of the host left open.
  python3 -c 'import socket, time; s = socket.socket(socket.AF_UNIX); s.bind("\0sandbox-probe-of-the-host"); s.listen(9); time.sleep(1000)' &
  local listener=$!
  exec 7< /sys/fs/cgroup
  ./sandbox run -q --rootfs "$stage/root" -- /probe > sandbox.txt
  in_crun > crun.txt
  in_docker > docker.txt
  kill $listener
  echo "Linux $(uname -r); $(./sandbox --version), $(crun --version | sed -n 1p), $(docker --version)"
  awk -F '\t' '
    FNR == 1 { file++ }
    !($1 in seen) { seen[$1] = 1; order[++count] = $1 }
    { outcome[$1, file] = $2 }
    END {
      printf "| attempt | sandbox | crun | docker |\n|---|---|---|---|\n"
      for (i = 1; i <= count; i++) {
        printf "| %s", order[i]
        for (f = 1; f <= 3; f++) printf " | %s", (order[i], f) in outcome ? outcome[order[i], f] : "did not end"
        print " |"
      }
    }' sandbox.txt crun.txt docker.txt
  grep -q '^= Seccomp' sandbox.txt || { echo "probe.sh: the program did not end in the sandbox" >&2; return 1; }
  ! grep REACHED sandbox.txt
}

if [ "${1:-}" = --inside ]; then inside "$2"; exit; fi

# --- outside ----------------------------------------------------------------------------------------------------------------------

for program in gcc crun dockerd jq python3; do
  command -v $program > /dev/null || { echo "probe.sh: $program is missing: apt install gcc libc6-dev crun docker.io jq python3" >&2; exit 125; }
done
cd "$here/../.."
# shellcheck source-path=SCRIPTDIR source=staged.sh
. "$here/staged.sh"
stage_program debug
gcc -Wall -Wextra -O1 -static -o "$stage/probe" "$here/probe.c"
install -m755 "$here/probe.sh" "$stage/probe.sh"
tests/lab/lab.sh run --bind "$stage" -- "$stage/probe.sh" --inside "$stage"

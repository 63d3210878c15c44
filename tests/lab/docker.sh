#!/bin/bash
# docker.sh — one image of a real dockerd, run by `docker run` and by `sandbox run` from every place that it can come from, in the lab:
# dockerd's own store, podman's, docker save, an OCI layout of skopeo, docker-registry on 127.0.0.1, and the layout that umoci unpacks. The trees
# that are seen inside are compared entry by entry: kind, mode, owner, size, times to the nanosecond, links, attributes, contents.
#   tests/lab/docker.sh      needs root; SANDBOX_BIN names the program, else the debug build is made
# The lab is a copy-on-write view of this machine, so docker.io, podman, docker-registry, skopeo, umoci, attr, libcap2-bin and busybox-static
# are installed here; their services are not started here. dockerd's store is on a disk directory, since overlay2 wants one.
set -euo pipefail
here=$(dirname "$(realpath "$0")")

# --- in the lab -------------------------------------------------------------------------------------------------------------------

build() { # the image web:1 in dockerd
  local from=$stage/from
  mkdir -p "$from/base/bin" "$from/base/etc" "$from/base/srv/tree/deep" "$from/base/srv/swap"
  cp "$(command -v busybox)" "$from/base/bin/busybox"
  ln -s busybox "$from/base/bin/sh"
  echo 'root:x:0:0::/root:/bin/sh' > "$from/base/etc/passwd"
  echo a > "$from/base/srv/tree/deep/f"; echo b > "$from/base/srv/gone"; echo c > "$from/base/srv/swap/inner"
  cp /bin/true "$from/base/bin/suid"; chmod 4755 "$from/base/bin/suid"
  cp /bin/true "$from/base/bin/cap"; setcap cap_net_raw+ep "$from/base/bin/cap"
  ln "$from/base/bin/suid" "$from/base/bin/suid2"; mkfifo "$from/base/srv/pipe"
  chown 1000:2000 "$from/base/srv/tree"; touch -h -d '2001-02-03 04:05:06.789' "$from/base/srv/tree/deep/f" "$from/base/bin/sh"
  tar -C "$from/base" --xattrs --xattrs-include='*' --format=posix --numeric-owner -cf "$from/base.tar" .
  rm -rf "$from/base"
  cat > "$from/Dockerfile" << 'END'
FROM scratch
ADD base.tar /
RUN ["/bin/busybox", "rm", "-r", "/srv/gone", "/srv/tree/deep"]
RUN ["/bin/sh", "-c", "cd /srv && /bin/busybox rm -r swap && /bin/busybox mkdir -m 2711 swap && echo new > swap/fresh"]
RUN ["/bin/sh", "-c", "cd /srv && /bin/busybox rm -r tree && /bin/busybox ln -s swap tree && /bin/busybox chmod 600 /etc/passwd"]
RUN ["/bin/sh", "-c", "echo x > /bin/made; /bin/busybox chown 33:34 /bin/made; /bin/busybox chmod 6711 /bin/made"]
ENV A=b
CMD ["/bin/busybox", "sleep", "1000"]
END
  DOCKER_BUILDKIT=0 docker build -q --network none -t web:1 "$from" > /dev/null
}

start_docker() {
  mkdir -p /etc/docker
  echo '{"storage-driver":"overlay2","iptables":false,"ip6tables":false,"bridge":"none","data-root":"'"$stage/docker"'"}' > /etc/docker/daemon.json
  systemctl start docker || { journalctl --no-pager -u docker -n 20; exit 1; }
}

show() { # show DIR: what there is to know of a tree but for what every runtime puts into it
  local own='^(proc|sys|dev|etc/hosts|etc/hostname|etc/resolv.conf|\.dockerenv|etc/mtab)(/| |$)'
  (cd "$1"
    # Times of directories that the runtimes write their own files into are not the image's: /, /etc.
    find . -mindepth 1 -xdev \( -path ./proc -o -path ./sys -o -path ./dev \) -prune -o -path ./etc -printf '%P %y %m %U %G\n' \
      -o -mindepth 1 -type d -printf '%P %y %m %U %G %T@\n' -o -mindepth 1 -printf '%P %y %m %U %G %s %T@ %n %l\n' | grep -vE "$own" | LC_ALL=C sort
    find . -xdev \( -path ./proc -o -path ./sys -o -path ./dev \) -prune -o -type f -print0 |
      LC_ALL=C sort -z | xargs -0 getfattr -h -d -m '^(user|security|trusted)\.' -e hex -- 2> /dev/null | grep -v overlay || true
    find . -xdev \( -path ./proc -o -path ./sys -o -path ./dev \) -prune -o -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | grep -vE "  \./(etc/(hosts|hostname|resolv.conf|mtab)|\.dockerenv)$")
}

in_docker() { # what `docker run` shows
  local id; id=$(docker run -d --network none web:1)
  show "/proc/$(docker inspect -f '{{.State.Pid}}' "$id")/root"
  docker rm -f "$id" > /dev/null
}

in_sandbox() { # in_sandbox FLAGS…: what `sandbox run` shows
  local unit=seen$RANDOM pid="" tries=0
  "$sandbox" run -q --userns identity --unit "$unit" "$@" < /dev/null > /dev/null 2> "$stage/said" &
  while [ -z "$pid" ]; do
    pid=$(pgrep -f -x '/bin/busybox sleep 1000' | head -n1 || true)
    tries=$((tries + 1)); [ $tries -lt 200 ] || { cat "$stage/said" >&2; return 1; }
    sleep 0.1
  done
  show "/proc/$pid/root"
  systemctl stop "$unit.scope"; wait || true
}

compare() { # compare NAME WANTED FOUND
  if diff -u "$2" "$3" > "$stage/difference"; then
    echo "same: $1 ($(wc -l < "$3") lines)"
  else
    echo "DIFFERENT: $1"; cat "$stage/difference"; failed=1
  fi
}

inside() {
  stage=$1 sandbox=$2 failed=0
  store=$stage/store
  cd "$stage"
  start_docker
  build
  in_docker > docker.txt
  { grep -q security.capability docker.txt && grep -q '^bin/suid f 4755' docker.txt; } || { echo "the image is not what it should be"; cat docker.txt; exit 1; }
  in_sandbox --docker-root "$stage/docker" --image docker:web:1 > place.txt; compare "dockerd's own store, in place" docker.txt place.txt
  docker save -o saved.tar web:1
  "$sandbox" image --store "$store" import -q saved.tar > /dev/null
  in_sandbox --store "$store" --image web:1 > saved.txt; compare "docker save" docker.txt saved.txt
  skopeo copy -q docker-archive:saved.tar oci:layout:1
  "$sandbox" image --store "$store" import -q --tag layout:1 layout > /dev/null
  in_sandbox --store "$store" --image layout:1 > layout.txt; compare "OCI layout of skopeo" docker.txt layout.txt
  umoci unpack --image layout:1 bundle > /dev/null 2>&1
  show bundle/rootfs > umoci.txt
  compare "umoci unpack, beside ours" umoci.txt layout.txt
  printf 'version: 0.1\nstorage: {filesystem: {rootdirectory: %s/registry}}\nhttp: {addr: 127.0.0.1:5055}\n' "$stage" > registry.yml
  docker-registry serve registry.yml > registry.log 2>&1 &
  registry=$!
  for _ in $(seq 100); do { : < /dev/tcp/127.0.0.1/5055; } 2> /dev/null && break; sleep 0.1; done
  docker tag web:1 127.0.0.1:5055/team/web:1; docker push -q 127.0.0.1:5055/team/web:1 > /dev/null
  "$sandbox" image --store "$store" pull -q 127.0.0.1:5055/team/web:1 > /dev/null
  kill $registry
  in_sandbox --store "$store" --image 127.0.0.1:5055/team/web:1 > pulled.txt; compare "docker push, sandbox image pull" docker.txt pulled.txt
  "$sandbox" image --store "$store" verify -q
  # And back: what we export, dockerd runs.
  "$sandbox" image --store "$store" export -q web:1 --output out.tar
  id=$(docker image inspect -f '{{.Id}}' web:1)
  docker rmi -f web:1 127.0.0.1:5055/team/web:1 > /dev/null
  docker load -qi out.tar > /dev/null
  [ "$(docker image inspect -f '{{.Id}}' web:1)" = "$id" ] || { echo "DIFFERENT: the image's ID after export and docker load"; failed=1; }
  in_docker > back.txt; compare "export, docker load, docker run" docker.txt back.txt
  # podman's overlay driver refuses a graph root on an overlay, as the lab's own / is; on a disk directory it works.
  podman --root "$stage/podman" --runroot "$stage/podman-run" --storage-driver overlay load -qi saved.tar > /dev/null
  printf '[storage]\ndriver = "overlay"\ngraphroot = "%s/podman"\nrunroot = "%s/podman-run"\n' "$stage" "$stage" > storage.conf
  CONTAINERS_STORAGE_CONF=$stage/storage.conf in_sandbox --image podman:web:1 > podman.txt
  compare "podman's own store, in place" docker.txt podman.txt
  # A commit of ours is an image to Docker.
  "$sandbox" run -q --store "$store" --name web --keep --image web:1 -- /bin/sh -c 'echo kept > /srv/kept; /bin/busybox rm /bin/made'
  "$sandbox" commit --store "$store" -q web web:2 --change 'CMD ["/bin/busybox", "sleep", "1000"]' > /dev/null
  "$sandbox" image --store "$store" export -q web:2 --output out2.tar
  docker load -qi out2.tar > /dev/null
  docker run --rm --network none web:2 /bin/sh -c 'cd /bin; echo made*; /bin/busybox cat /srv/kept' > commit.txt
  printf 'made*\nkept\n' > wanted.txt; compare "a commit, docker load, docker run" wanted.txt commit.txt
  systemctl stop docker docker.socket containerd || true
  return $failed
}

if [ "${1:-}" = --inside ]; then inside "$2" "$3"; exit; fi

# --- outside ----------------------------------------------------------------------------------------------------------------------

for program in dockerd podman docker-registry skopeo umoci getfattr setcap busybox; do
  command -v $program > /dev/null || { echo "docker.sh: $program is missing: apt install docker.io podman docker-registry skopeo umoci attr libcap2-bin busybox-static" >&2; exit 125; }
done
cd "$here/../.."
# shellcheck source-path=SCRIPTDIR source=staged.sh
. "$here/staged.sh"
stage_program debug
install -m755 "$here/docker.sh" "$stage/docker.sh"
tests/lab/lab.sh run --bind "$stage" -- "$stage/docker.sh" --inside "$stage" "$stage/sandbox"

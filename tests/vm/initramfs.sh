#!/bin/bash
# initramfs.sh TREE VMLINUZ INITRD — take the kernel out of a Debian TREE and make the smallest initramfs that finds its root.
# busybox, the modules for a virtio disk with ext4, ten lines of script: under emulation this boots in a fraction of the
# time that Debian's own initramfs takes to unpack itself.
set -euo pipefail
tree=$1 vmlinuz=$2 initrd=$3
kernel=$(basename "$tree"/boot/vmlinuz-*)
version=${kernel#vmlinuz-}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

mkdir -p "$work"/{bin,mod,dev,proc,sys,root}
cp "$tree/bin/busybox" "$work/bin/busybox"
ln -s busybox "$work/bin/sh"

# In the order in which they must be loaded, which the tree's own modprobe knows. What is built in is no line; crc32c_generic is a
# need of ext4 that old kernels do not declare and new ones do not have.
chroot "$tree" depmod "$version"
for module in virtio_pci virtio_blk crc32c_generic ext4 overlay fuse; do
  chroot "$tree" modprobe -S "$version" --show-depends "$module" 2>/dev/null || [ "$module" = crc32c_generic ]
done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' > "$work/modules"
while read -r module; do
  name=$(basename "$module")
  case "$name" in
    *.xz) xz -dc "$tree$module" > "$work/mod/${name%.xz}" ;;
    *.zst) zstd -qdc "$tree$module" > "$work/mod/${name%.zst}" ;;
    *) cp "$tree$module" "$work/mod/$name" ;;
  esac
  name=${name%.xz}
  echo "${name%.zst}" >> "$work/order"
done < "$work/modules"

cat > "$work/init" << 'INIT'
#!/bin/sh
export PATH=/bin
busybox mount -t devtmpfs dev /dev
busybox mount -t proc proc /proc
while read -r m; do busybox insmod /mod/$m; done < /order
i=0
while [ ! -b /dev/vda ] && [ $i -lt 200 ]; do busybox usleep 20000; i=$((i + 1)); done
busybox mount -t ext4 -o noatime /dev/vda /root || { echo "initramfs: no root"; busybox poweroff -f; }
busybox mount -o move /dev /root/dev
busybox umount /proc
exec busybox switch_root /root /lib/systemd/systemd
INIT
chmod 755 "$work/init"
rm "$work/modules"
cp "$tree/boot/vmlinuz-$version" "$vmlinuz"
(cd "$work" && find . | "$tree/bin/busybox" cpio -o -H newc 2> /dev/null > "$initrd")

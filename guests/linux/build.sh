#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Builds the demo's guest: kernel, initrd and base.qcow2, from Debian's own packages. Runs as root.
#
#   guests/linux/build.sh        prints, last, the folder that holds the three files
#
# Images are kept under out/guests/ (or $MEMSHARE_CACHE), in a folder named after the hash of this
# recipe; what is there already is not built again, and a build that was broken off goes on after the
# last file that was finished.
set -eu
recipe=$(cd "$(dirname "$0")" && pwd)
suite=bookworm
cache=${MEMSHARE_CACHE:-$recipe/../../out/guests}

say() { printf '==> guest: %s\n' "$*" >&2; }
[ "$(id -u)" = 0 ] || { echo "error: building a guest needs root" >&2; exit 1; }

key=$(cd "$recipe" && cat agent build.sh customize.sh initrd-init memshare-agent.service | sha256sum | cut -c1-16)
folder=$cache/linux-$key
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
# Two builds at once: the second waits, then finds everything made.
exec 9>"$folder/lock"
flock 9
cd "$folder"
for path in root.tmp boot.tmp; do [ ! -e $path ] || [ -e rootfs.done ] || rm -rf "$path"; done

if [ ! -e base.qcow2 ] && [ ! -e rootfs.done ]; then
    say "Debian $suite root file system (mmdebstrap, about half a minute)"
    mkdir boot.tmp
    RECIPE=$recipe BOOT=$folder/boot.tmp mmdebstrap --quiet --mode=root --variant=minbase \
        --include=systemd-sysv,openssl \
        --aptopt='Acquire::Languages "none"' \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/info/*' \
        --customize-hook="$recipe/customize.sh" $suite root.tmp >&2
    : >rootfs.done
fi

if [ ! -e initrd ]; then
    say "initrd"
    rm -rf initrd.tmp
    mkdir -p initrd.tmp/bin initrd.tmp/modules
    cp /bin/busybox initrd.tmp/bin/busybox
    install -m 755 "$recipe/initrd-init" initrd.tmp/init
    for name in virtio virtio_ring virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk \
        virtio_balloon virtio_mem crc16 crc32c_generic mbcache jbd2 ext4; do
        find boot.tmp/kernel -name "$name.ko" -exec cp {} initrd.tmp/modules/ \;
    done
    (cd initrd.tmp && find . -print0 | LC_ALL=C sort -z | cpio --quiet -0 -o -H newc) | gzip -1 >initrd.part
    cp boot.tmp/kernel/boot/vmlinuz-* vmlinuz
    mv initrd.part initrd
    rm -rf initrd.tmp
fi

if [ ! -e base.qcow2 ]; then
    say "disk image"
    rm -f base.raw
    truncate -s 1G base.raw
    mkfs.ext4 -q -F -O ^metadata_csum_seed -E lazy_itable_init=0 -d root.tmp base.raw
    qemu-img convert -f raw -O qcow2 base.raw base.part
    mv base.part base.qcow2
    rm -rf base.raw root.tmp boot.tmp rootfs.done
fi
# Read by guests that run as somebody else.
chmod 755 "$folder"
chmod 644 vmlinuz initrd base.qcow2
say "ready: $folder"
echo "$folder"

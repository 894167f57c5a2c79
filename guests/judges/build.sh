#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Builds what judges memory from Debian's own packages: memtest86+ as a kernel, and a disk with memtester and
# stress-ng for the kernel and initrd of guests/linux. Runs as root.
#
#   guests/judges/build.sh       prints, last, the folder that holds memtest86+.bin and judges.ext4
#
# Kept under out/guests/ (or $MEMSHARE_CACHE) as guests/linux/build.sh keeps its images.
set -eu
recipe=$(cd "$(dirname "$0")" && pwd)
suite=bookworm
cache=${MEMSHARE_CACHE:-$recipe/../../out/guests}

say() { printf '==> judges: %s\n' "$*" >&2; }
[ "$(id -u)" = 0 ] || { echo "error: building a guest needs root" >&2; exit 1; }

key=$(cd "$recipe" && cat build.sh init | sha256sum | cut -c1-16)
folder=$cache/judges-$key
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
# Two builds at once: the second waits, then finds everything made.
exec 9>"$folder/lock"
flock 9
cd "$folder"

if [ ! -e judges.ext4 ]; then
    say "memtest86+, memtester and stress-ng (mmdebstrap, some seconds)"
    rm -rf root.tmp
    # Unpacked, not installed: nothing here needs its maintainer's scripts.
    mmdebstrap --quiet --mode=root --variant=extract --include=memtest86+,memtester,stress-ng,busybox-static \
        $suite root.tmp >&2
    cp root.tmp/boot/memtest86+x64.bin memtest86+.bin
    rm -rf root.tmp/boot root.tmp/usr/share
    mkdir -p root.tmp/dev root.tmp/proc root.tmp/sys root.tmp/tmp root.tmp/sbin
    install -m 755 "$recipe/init" root.tmp/sbin/init
    # Room for nothing more: the guest's files are in its memory.
    mke2fs -q -F -t ext4 -O ^metadata_csum_seed -E lazy_itable_init=0 -d root.tmp judges.part 128M
    mv judges.part judges.ext4
    rm -rf root.tmp
fi
# Read by guests that run as somebody else.
chmod 755 "$folder"
chmod 644 memtest86+.bin judges.ext4
say "ready: $folder"
echo "$folder"

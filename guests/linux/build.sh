#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Builds a guest's image from Debian's own packages: kernel, initrd and base.qcow2. Runs as root.
#
#   guests/linux/build.sh [--show] [NAME[@SUITE]]     demo; bookworm or trixie
#
# Prints, last, the folder that holds the files, and image.json about them; with --show, what it would build, from what.
# recipes/NAME.conf sets the words of `defaults` below, as sh; recipes/HOOK.sh runs on the root file system.
#
# Images are kept under out/guests/ (or $MEMSHARE_CACHE), in a folder named after the hash of all that goes into them.
# What is there is verified by its SHA256SUMS and not built again; a build that was broken off goes on after the last file
# that was finished. Two builds from the same packages are the same byte for byte.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
recipes=$here/recipes
cache=${MEMSHARE_CACHE:-$here/../../out/guests}
# What is newer in an image has this time: 2025-01-01.
export SOURCE_DATE_EPOCH=1735689600

die() { printf 'error: guest: %s\n' "$*" >&2; exit 1; }
say() { printf '==> guest %s@%s: %s\n' "$name" "$suite" "$*" >&2; }

show=
[ "${1-}" != --show ] || { show=1; shift; }
image=${1:-demo}
name=${image%@*}
suite=bookworm
[ "$name" = "$image" ] || suite=${image#*@}

words="about agent packages packages_later hook mkfs disk kernel_options min_ram"
defaults() {
    about=               # one line
    agent=qemu           # qemu: guest agent and guests/agents; serial: the demo's, on the second serial port
    packages=            # beyond a minimal Debian with systemd
    packages_later=      # installed one after the other, in this order, when all others are configured
    hook=                # recipes/HOOK.sh ROOT
    mkfs=                # more options for mkfs.ext4
    disk=1G              # its size
    kernel_options=      # of the guest's kernel
    min_ram=256M         # with which it is known to boot
}

case $name in '' | *[!a-z0-9-]*) die "$image: not a name such as minimal or minimal@trixie" ;; esac
[ -e "$recipes/$name.conf" ] ||
    die "no recipe $name; there are: $(cd "$recipes" && echo *.conf | sed 's/\.conf//g')"
case $suite in bookworm | trixie) ;; *) die "no suite $suite; there are: bookworm trixie" ;; esac
sed -n 's/^\([a-z_]*\)=.*/\1/p' "$recipes/$name.conf" | while read -r word; do
    case " $words " in *" $word "*) ;; *) die "recipes/$name.conf: no setting $word; there are: $words" ;; esac
done
defaults
# shellcheck source=/dev/null
. "$recipes/$name.conf"
case $agent in
qemu) packages="qemu-guest-agent $packages" ;;
serial) ;;
*) die "recipes/$name.conf: agent: $agent is neither qemu nor serial" ;;
esac

settings() {
    for word in name suite $words; do
        eval "printf '%s=%s\n' $word \"\$$word\""
    done
}

ingredients() {
    settings
    cat "$here"/build.sh "$here"/disk.sh "$here"/customize.sh "$here"/initrd-init
    case $agent in
    qemu) cat "$here"/guest-agent* "$here"/../agents/* ;;
    serial) cat "$here"/agent "$here"/memshare-agent.service ;;
    esac
    [ -z "$hook" ] || cat "$recipes/$hook.sh"
}

key=$(ingredients | sha256sum | cut -c1-16)
folder=$cache/$name-$suite-$key
if [ -n "$show" ]; then
    settings
    echo "folder=$folder"
    exit 0
fi
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
# Two builds at once: the second waits, then finds everything made.
exec 9>"$folder/lock"
flock 9
cd "$folder"

if [ -e SHA256SUMS ]; then
    if sha256sum --check --status SHA256SUMS 2>/dev/null; then
        echo "$folder"
        exit 0
    fi
    say "damaged, building it again: $(sha256sum --check --quiet SHA256SUMS 2>/dev/null | tr '\n' ' ')"
    rm -rf SHA256SUMS root.tar boot vmlinuz initrd base.qcow2
fi
[ "$(id -u)" = 0 ] || die "building $image needs root"
began=$(date +%s)

# What mmdebstrap and others leave behind when they are broken off.
rm -rf tmp
mkdir tmp
export TMPDIR="$folder/tmp"

if [ ! -e root.tar ]; then
    say "1/3 root file system (mmdebstrap)"
    # What was made of another root file system, too: Debian's packages may have changed since.
    rm -rf boot vmlinuz initrd base.qcow2
    mkdir boot
    [ "$agent" != qemu ] || "$here/../agents/build.sh" "$folder/tmp/agents"
    quiet=
    [ -t 2 ] || quiet=--quiet
    # shellcheck disable=SC2086 # lists of words
    RECIPE=$here BOOT=$folder/boot AGENT=$agent AGENTS=$folder/tmp/agents LATER=$packages_later \
        HOOK=${hook:+$recipes/$hook.sh} mmdebstrap $quiet --mode=root --variant=minbase \
        --include="systemd-sysv $packages" \
        --aptopt='Acquire::Languages "none"' --aptopt='APT::Install-Recommends "false"' \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/info/*' \
        --customize-hook="$here/customize.sh" $suite tmp/root.tar >&2
    mv tmp/root.tar root.tar
fi

if [ ! -e initrd ]; then
    say "2/3 initrd"
    initrd=tmp/initrd
    mkdir -p $initrd/bin $initrd/modules
    cp /bin/busybox $initrd/bin/busybox
    install -m 755 "$here/initrd-init" $initrd/init
    for module in virtio virtio_ring virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk \
        virtio_balloon virtio_mem virtio_console crc16 crc32c_generic mbcache jbd2 ext4; do
        find boot/kernel -name "$module.ko*" -exec cp {} $initrd/modules/ \;
    done
    find $initrd/modules -name '*.xz' -exec xz --decompress {} +
    find $initrd -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
    (cd $initrd && find . -print0 | LC_ALL=C sort -z | cpio --quiet --reproducible -0 -o -H newc) |
        gzip -1n >tmp/initrd.gz
    cp boot/kernel/boot/vmlinuz-* vmlinuz
    mv tmp/initrd.gz initrd
fi

if [ ! -e base.qcow2 ]; then
    say "3/3 disk"
    # shellcheck disable=SC2086 # a list of words
    "$here/disk.sh" root.tar "$name" "$disk" tmp/base.raw $mkfs
    qemu-img convert -f raw -O qcow2 tmp/base.raw tmp/base.qcow2
    mv tmp/base.qcow2 base.qcow2
fi

cat >image.json <<JSON
{"name": "$name", "suite": "$suite", "about": "$about", "kernel_options": "$kernel_options", "min_ram": "$min_ram",
 "kernel": "$(basename boot/kernel/boot/vmlinuz-* | cut -d- -f2-)", "packages": $(wc -l <boot/packages),
 "packages_sha256": "$(sha256sum <boot/packages | cut -c1-64)", "disk_sha256": "$(sha256sum <base.qcow2 | cut -c1-64)",
 "disk_bytes": $(stat -c %s base.qcow2), "root_bytes": $(stat -c %s root.tar), "build_seconds": $(($(date +%s) - began))}
JSON
cp boot/packages packages
rm -rf root.tar boot tmp
# Read by guests that run as somebody else.
chmod 755 "$folder"
chmod 644 vmlinuz initrd base.qcow2 image.json packages
sha256sum vmlinuz initrd base.qcow2 image.json packages >SHA256SUMS.part
mv SHA256SUMS.part SHA256SUMS
say "ready: $folder"
echo "$folder"

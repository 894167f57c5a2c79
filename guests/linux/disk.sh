#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Makes a raw disk with an ext4 file system from a root file system's tar. What is in it depends on what is given alone.
#
#   disk.sh TAR NAME SIZE OUTPUT [MKFS-OPTION...]
set -eu
tar=$1 name=$2 size=$3 output=$4
shift 4
epoch=$SOURCE_DATE_EPOCH
files=$output.files
mkdir "$files"
tar --extract --file "$tar" --directory "$files" --numeric-owner --xattrs --xattrs-include='*'

# mkfs copies files in the order of their names, by this locale. The name of the image is in what else would be random.
export LC_ALL=C E2FSPROGS_FAKE_TIME="$epoch"
uuid=$(printf %s "$name" | sha256sum | sed 's/^\(.\{8\}\)\(.\{4\}\)\(.\{4\}\)\(.\{4\}\)\(.\{12\}\).*/\1-\2-\3-\4-\5/')
truncate -s "$size" "$output"
mkfs.ext4 -q -F -O ^metadata_csum_seed -U "$uuid" -E "lazy_itable_init=0,hash_seed=$uuid" "$@" -d "$files" "$output"

# When a file was unpacked on this host is nobody's business in the guest.
for field in atime ctime crtime; do
    find "$files" -printf "sif \"/%P\" $field @$epoch\\n"
done >"$output.commands"
debugfs -w -f "$output.commands" "$output" >"$output.said" 2>&1
if grep -v '^debugfs' "$output.said" | head -3 | grep . >&2; then
    echo "error: guest: debugfs could not set all times" >&2
    exit 1
fi
rm -rf "$files"

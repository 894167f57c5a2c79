#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Run on the root file system ($1): a wine prefix as Windows Setup would leave one, and a service that keeps its processes.
set -eu
root=$1
prefix=/var/lib/wine
server=$(cd "$root" && find usr/lib/wine usr/bin -name 'wineserver*' -type f -perm -100 | head -1)
for command in "wine wineboot --init" "/$server --wait"; do
    # shellcheck disable=SC2086 # a command and its arguments
    chroot "$root" env WINEPREFIX=$prefix WINEDEBUG=-all WINEDLLOVERRIDES=mscoree,mshtml= HOME=/root $command >/dev/null
done
cat >"$root/etc/systemd/system/memshare-wine.service" <<'EOF_UNIT'
[Unit]
Description=Windows programs under wine

[Service]
Environment=WINEPREFIX=/var/lib/wine WINEDEBUG=-all HOME=/root
ExecStart=/usr/bin/wine cmd /c "ping -n 1000000000 127.0.0.1"
StandardOutput=null
EOF_UNIT
ln -s ../memshare-wine.service "$root/etc/systemd/system/multi-user.target.wants/"

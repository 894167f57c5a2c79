#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# mmdebstrap runs this on the new root file system ($1), with the recipe's folder in RECIPE and the
# place for kernel, modules and initrd in BOOT.
set -eu
root=$1

# The kernel's package is unpacked, not installed: an initrd of our own needs neither its scripts nor
# the tools that they would pull in.
kernel=$(chroot "$root" apt-cache depends linux-image-cloud-amd64 |
    awk '/Depends: linux-image-/ { print $2; exit }')
chroot "$root" sh -c "cd /var/cache && apt-get -qq -o APT::Sandbox::User=root download $kernel"
mkdir -p "$BOOT/kernel"
dpkg-deb -x "$root"/var/cache/"$kernel"_*.deb "$BOOT/kernel"
rm "$root"/var/cache/"$kernel"_*.deb

install -D -m 755 "$RECIPE/agent" "$root/usr/local/sbin/memshare-agent"
install -D -m 644 "$RECIPE/memshare-agent.service" "$root/etc/systemd/system/memshare-agent.service"
install -d "$root/memory" "$root/etc/systemd/system/multi-user.target.wants"
ln -s ../memshare-agent.service "$root/etc/systemd/system/multi-user.target.wants/"

# Debian as it is, less what waits for people, devices or clocks: the guest should come up within ten
# seconds of CPU under TCG and then keep still.
for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer \
    e2scrub_reap.service fstrim.timer getty.target getty@.service serial-getty@.service \
    systemd-tmpfiles-clean.timer systemd-firstboot.service systemd-logind.service \
    systemd-pstore.service systemd-networkd.service systemd-timesyncd.service systemd-repart.service \
    systemd-binfmt.service systemd-update-utmp.service systemd-update-utmp-runlevel.service \
    systemd-update-done.service systemd-modules-load.service systemd-hwdb-update.service \
    systemd-random-seed.service kmod-static-nodes.service remote-fs.target cryptsetup.target \
    integritysetup.target veritysetup.target proc-sys-fs-binfmt_misc.automount dev-hugepages.mount \
    dev-mqueue.mount sys-kernel-debug.mount sys-kernel-tracing.mount sys-kernel-config.mount \
    sys-fs-fuse-connections.mount; do
    ln -sf /dev/null "$root/etc/systemd/system/$unit"
done
ln -sf /lib/systemd/system/multi-user.target "$root/etc/systemd/system/default.target"
# Each guest makes an identity of its own at its first boot, as two machines would.
: >"$root/etc/machine-id"
echo memshare-guest >"$root/etc/hostname"
rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/*.bin

#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# mmdebstrap runs this on the new root file system ($1). build.sh sets RECIPE (this folder), BOOT (where the kernel goes),
# AGENT, AGENTS (programs), LATER (packages) and HOOK (a script).
set -eu
root=$1

for package in $LATER; do
    chroot "$root" apt-get -qq -y install "$package"
done

# The kernel's package is unpacked, not installed: an initrd of our own needs neither its scripts nor
# the tools that they would pull in.
kernel=$(chroot "$root" apt-cache depends linux-image-cloud-amd64 |
    awk '/Depends: linux-image-/ { print $2; exit }')
chroot "$root" sh -c "cd /var/cache && apt-get -qq -o APT::Sandbox::User=root download $kernel"
mkdir -p "$BOOT/kernel"
mv "$root"/var/cache/"$kernel"_*.deb "$BOOT/"
dpkg-deb -x "$BOOT"/*.deb "$BOOT/kernel"

units=$root/etc/systemd/system
install -d "$units/multi-user.target.wants"
case $AGENT in
serial)
    install -D -m 755 "$RECIPE/agent" "$root/usr/local/sbin/memshare-agent"
    install -m 644 "$RECIPE/memshare-agent.service" "$units/"
    install -d "$root/memory"
    ln -s ../memshare-agent.service "$units/multi-user.target.wants/"
    ;;
qemu)
    install -D -m 755 -t "$root/usr/lib/memshare" "$RECIPE/guest-agent" "$AGENTS"/*
    install -m 644 "$RECIPE/guest-agent.service" "$units/qemu-guest-agent.service"
    ln -s ../qemu-guest-agent.service "$units/multi-user.target.wants/"
    ;;
esac
[ -z "$HOOK" ] || "$HOOK" "$root"

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
    ln -sf /dev/null "$units/$unit"
done
ln -sf /lib/systemd/system/multi-user.target "$units/default.target"
# Each guest makes an identity of its own at its first boot, as two machines would.
: >"$root/etc/machine-id"
echo memshare-guest >"$root/etc/hostname"
# shellcheck disable=SC2016 # dpkg-query's fields
chroot "$root" dpkg-query -W -f '${Package} ${Version}\n' >"$BOOT/packages"
echo "${kernel} $(basename "$BOOT"/*.deb .deb | cut -d_ -f2)" >>"$BOOT/packages"
# Of this host, or of this build.
rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/*.bin "$root"/etc/resolv.conf "$root"/var/cache/ldconfig/*
find "$root/var/log" -type f -delete

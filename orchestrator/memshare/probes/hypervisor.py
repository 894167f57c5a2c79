# SPDX-License-Identifier: GPL-2.0-or-later
"""What KVM and libvirt put around guests, and does it leave them room to share?"""

import re

import msgspec

from memshare.probes import Finding, Probe, Verdict
from memshare.probes.kernel import version_of

#: What `packaging/apparmor` installs below /etc/apparmor.d, and what has to name it.
ABSTRACTION = "abstractions/memshare-qemu"
LOCAL_ABSTRACTION = "/etc/apparmor.d/local/abstractions/libvirt-qemu"

LIBVIRT_CONFIG = "/etc/libvirt/qemu.conf"


class Hypervisor(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen of it."""

    release: str = "6.18"
    has_kvm: bool = True
    #: Modules of KVM that let guests run guests: `kvm_intel`, `kvm_amd`.
    nesting: tuple[str, ...] = ()
    #: IOMMU groups that are given to VFIO.
    vfio_groups: tuple[str, ...] = ()
    #: The controllers of cgroup v2; None where it is not what /sys/fs/cgroup holds.
    cgroup_controllers: tuple[str, ...] | None = ("memory",)
    #: What libvirt is told about QEMUs; None where there is no libvirt, or it may not be read.
    libvirt_config: str | None = None
    has_apparmor: bool = False
    #: Whether libvirt's profiles for QEMU are installed.
    has_libvirt_profiles: bool = False
    has_abstraction: bool = False
    local_abstraction: str = ""


def setting(config: str, name: str) -> str | None:
    """Return what a line of qemu.conf sets; None where none does."""
    found = re.findall(rf"^\s*{name}\s*=\s*(\[[^\]]*\]|[^#\n]*)", config, re.MULTILINE)
    return found[-1].strip() if found else None


def kvm(seen: Hypervisor) -> Finding:
    """Whether guests run, or are emulated."""
    if seen.has_kvm:
        return Finding(Verdict.PASS, "/dev/kvm is there")
    return Finding(
        Verdict.WARN,
        "no /dev/kvm: guests are emulated",
        "modprobe kvm_intel || modprobe kvm_amd, and switch virtualisation on in the firmware",
    )


def nested(seen: Hypervisor) -> Finding:
    """Whether KVM writes to pages of guests' guests without pinning them."""
    if not seen.nesting:
        return Finding(Verdict.PASS, "guests run no guests")
    if version_of(seen.release) >= (6, 13, 0):
        return Finding(Verdict.PASS, "guests may run guests, and share")
    module = seen.nesting[0]
    return Finding(
        Verdict.WARN,
        f"guests that may run guests do not share before Linux 6.13, and {module} has nested=1",
        f"echo 'options {module} nested=0' > /etc/modprobe.d/memshare.conf, and reboot; "
        "or give guests a CPU without vmx, svm",
    )


def vfio(seen: Hypervisor) -> Finding:
    """Whether devices are passed to guests, whose memory then has to stay where it is."""
    if not seen.vfio_groups:
        return Finding(Verdict.PASS, "no device is given to guests")
    return Finding(
        Verdict.WARN,
        f"{len(seen.vfio_groups)} IOMMU groups are given to VFIO "
        f"({', '.join(seen.vfio_groups)}): guests that have one do not share",
        "virsh nodedev-list --cap pci, virsh nodedev-reattach DEVICE, if it is not meant to be so",
    )


def cgroups(seen: Hypervisor) -> Finding:
    """Whether the broker can tell guests, all of one user, apart."""
    if seen.libvirt_config is not None:
        controllers = setting(seen.libvirt_config, "cgroup_controllers")
        if controllers is not None and not controllers.strip("[] "):
            return Finding(
                Verdict.FAIL,
                f"{LIBVIRT_CONFIG} gives guests no cgroup: the broker admits none of them",
                f"sed -i 's/^ *cgroup_controllers/#&/' {LIBVIRT_CONFIG} && systemctl restart libvirtd",
            )
    if seen.cgroup_controllers is None:
        return Finding(
            Verdict.WARN,
            "cgroups v1: the broker cannot tell guests of libvirt apart, and admits none of them",
            "add systemd.unified_cgroup_hierarchy=1 to the kernel's command line; "
            "with one tenant: memshared --allow-by-mode",
        )
    if "memory" not in seen.cgroup_controllers:
        return Finding(
            Verdict.WARN,
            "cgroups v2 without memory: what the store uses, and limits of guests, are not seen",
            "take cgroup_disable=memory off the kernel's command line",
        )
    return Finding(Verdict.PASS, "v2, with memory")


def apparmor(seen: Hypervisor) -> Finding:
    """Whether libvirt confines QEMU without what the plugin needs."""
    if not seen.has_apparmor:
        return Finding(Verdict.PASS, "not enabled")
    driver = setting(seen.libvirt_config or "", "security_driver")
    if not seen.has_libvirt_profiles or (driver is not None and "none" in driver):
        return Finding(Verdict.PASS, "does not confine guests of libvirt")
    if not seen.has_abstraction:
        return Finding(
            Verdict.FAIL,
            f"libvirt confines QEMU, and /etc/apparmor.d/{ABSTRACTION} is missing",
            "install memshare's abstraction for AppArmor there",
        )
    lines = (line.partition("#")[0] for line in _includes(seen.local_abstraction))
    if any(ABSTRACTION in line for line in lines):
        return Finding(Verdict.PASS, "guests of libvirt may load the plugin")
    return Finding(
        Verdict.FAIL,
        "libvirt confines QEMU: a guest with the plugin does not start",
        f"echo 'include <{ABSTRACTION}>' >> {LOCAL_ABSTRACTION}",
    )


def _includes(text: str) -> list[str]:
    """Return the lines with `#include`, the older way to write it, as `include`."""
    return [re.sub(r"^\s*#include\b", "include", line) for line in text.splitlines()]


PROBES: tuple[Probe[Hypervisor], ...] = (kvm, nested, vfio, cgroups, apparmor)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Looks at this host for `memshare doctor`. Changes nothing; judges nothing (`probes/` does).

root is where the host's files are: tests have a tree of their own.
"""

import contextlib
import errno
import fcntl
import os
import re
import struct
from importlib.metadata import version as version_of_package
from pathlib import Path

from memshare import config
from memshare.clients import broker as broker_client
from memshare.clients import procfs
from memshare.errors import MemshareError
from memshare.probes.broker import Reached
from memshare.probes.hypervisor import ABSTRACTION, LIBVIRT_CONFIG, LOCAL_ABSTRACTION, Hypervisor
from memshare.probes.kernel import MAPPINGS, Kernel
from memshare.probes.memory import Memory

HOST = Path("/")

# <linux/userfaultfd.h> and <linux/fs.h>, as _IO and _IOWR make the numbers.
USERFAULTFD_IOC_NEW = 0xAA00
UFFDIO_API = 0xC018AA3F
UFFD_API = 0xAA
PAGEMAP_SCAN = 0xC0606610
PM_SCAN_ARG_BYTES = 96


def look_at_kernel(root: Path = HOST) -> Kernel:
    """What the kernel can do for an engine, and how it is set."""
    features, problem, forbidden = _uffd_features(root / "dev/userfaultfd")
    return Kernel(
        release=os.uname().release,
        uffd_features=features,
        uffd_problem=problem,
        uffd_forbidden=forbidden,
        has_pagemap_scan=_has_pagemap_scan(root / "proc/self/pagemap"),
        overcommit_memory=_number(root / "proc/sys/vm/overcommit_memory") or 0,
        max_map_count=_number(root / "proc/sys/vm/max_map_count") or MAPPINGS,
        has_psi=(root / "proc/pressure/memory").exists(),
    )


def look_at_memory(root: Path = HOST) -> Memory:
    """Who else manages memory."""
    mm = root / "sys/kernel/mm"
    meminfo = procfs.parse_kb_lines(_text(root / "proc/meminfo").splitlines())
    return Memory(
        huge_pages=_choice(mm / "transparent_hugepage/enabled"),
        huge_pages_defrag=_choice(mm / "transparent_hugepage/defrag"),
        khugepaged_max_ptes_none=_number(mm / "transparent_hugepage/khugepaged/max_ptes_none"),
        ksm_run=_text(mm / "ksm/run"),
        ksm_pages_sharing=_number(mm / "ksm/pages_sharing") or 0,
        ksmtuned=tuple(
            int(comm.parent.name)
            for comm in sorted((root / "proc").glob("[0-9]*/comm"))
            if _text(comm) == "ksmtuned"
        ),
        reserved_bytes={
            # hugepages-2048kB
            size.name: (_number(size / "nr_hugepages") or 0) * _digits(size.name) * 1024
            for size in sorted((mm / "hugepages").glob("hugepages-*kB"))
        },
        swap_bytes=meminfo.get("SwapTotal", 0),
    )


def look_at_hypervisor(root: Path = HOST) -> Hypervisor:
    """What KVM and libvirt put around guests."""
    modules, profiles = root / "sys/module", root / "etc/apparmor.d"
    controllers = root / "sys/fs/cgroup/cgroup.controllers"
    libvirt_config = root / LIBVIRT_CONFIG[1:]
    return Hypervisor(
        release=os.uname().release,
        has_kvm=(root / "dev/kvm").exists(),
        nesting=tuple(
            name
            for name in ("kvm_intel", "kvm_amd")
            if _text(modules / name / "parameters/nested") in ("Y", "1")
        ),
        vfio_groups=tuple(
            entry.name
            for entry in sorted((root / "dev/vfio").glob("*"))
            if entry.name not in ("vfio", "devices")
        ),
        cgroup_controllers=tuple(_text(controllers).split()) if controllers.exists() else None,
        libvirt_config=_text(libvirt_config) if os.access(libvirt_config, os.R_OK) else None,
        has_apparmor=_text(modules / "apparmor/parameters/enabled") == "Y",
        has_libvirt_profiles=(profiles / "abstractions/libvirt-qemu").exists(),
        has_abstraction=(profiles / ABSTRACTION).exists(),
        local_abstraction=_text(root / LOCAL_ABSTRACTION[1:]),
    )


async def look_at_broker(path: Path) -> Reached:
    """What the configuration says of a broker, and what that one says."""
    try:
        socket = config.load(path).broker
    except MemshareError as error:
        return Reached(config_problem=str(error))
    version = version_of_package("memshare")
    if not socket:
        return Reached(version=version)
    try:
        broker = await broker_client.read_broker(Path(socket))
    except MemshareError as error:
        return Reached(
            version=version,
            socket=socket,
            problem=str(error),
            forbidden=isinstance(error.__cause__, PermissionError),
        )
    return Reached(
        version=version,
        socket=socket,
        broker_version=broker.version,
        groups=tuple(group.name for group in broker.groups),
    )


def _text(path: Path) -> str:
    """Return what a file says; nothing when it is not there, or not for us."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdigit() else None


def _digits(name: str) -> int:
    return int(re.sub(r"\D", "", name))


def _choice(path: Path) -> str:
    """Return the word in brackets of `always [madvise] never`."""
    chosen = re.search(r"\[(.+?)\]", _text(path))
    return chosen[1] if chosen else ""


def _uffd_features(device: Path) -> tuple[int | None, str, bool]:
    """Return the features of a userfaultfd made from this device; else why not, and if we may not."""
    try:
        with contextlib.ExitStack() as stack:
            opened = os.open(device, os.O_RDWR | os.O_CLOEXEC)
            stack.callback(os.close, opened)
            made = fcntl.ioctl(opened, USERFAULTFD_IOC_NEW, os.O_CLOEXEC | os.O_NONBLOCK)
            stack.callback(os.close, made)
            api = bytearray(struct.pack("QQQ", UFFD_API, 0, 0))
            fcntl.ioctl(made, UFFDIO_API, api)
            return struct.unpack("QQQ", api)[1], "", False
    except OSError as error:
        problem = f"/dev/userfaultfd: {(error.strerror or str(error)).lower()}"
        return None, problem, error.errno in (errno.EACCES, errno.EPERM)


def _has_pagemap_scan(pagemap: Path) -> bool | None:
    """Whether a scan of no pages succeeds; None where there is nothing to try it on."""
    try:
        opened = os.open(pagemap, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        empty = struct.pack("Q", PM_SCAN_ARG_BYTES).ljust(PM_SCAN_ARG_BYTES, b"\0")
        fcntl.ioctl(opened, PAGEMAP_SCAN, empty)
    except OSError:
        return False
    finally:
        os.close(opened)
    return True

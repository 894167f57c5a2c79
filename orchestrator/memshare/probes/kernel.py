# SPDX-License-Identifier: GPL-2.0-or-later
"""Can this kernel move pages and tell what was written, and is it set so that an engine runs?"""

import re

import msgspec

from memshare.probes import Finding, Probe, Verdict
from memshare.render import human_bytes

#: What an engine asks of a userfaultfd (`client/uffd.c`), and the Linux that brought it.
NEEDED_FEATURES = {
    0: "write protection (5.7)",
    12: "write protection of shared memory (5.19)",
    15: "asynchronous write protection (6.7)",
    16: "UFFDIO_MOVE (6.8)",
}

#: What `packaging/sysctl.d` sets, and newer distributions by themselves.
MAPPINGS = 1 << 20

#: RAM of a guest after load that one mapping stands for: the usual limit of 65,530 serves about a GiB.
MAPPED_BYTES = 16 << 10

AS_ROOT = "run memshare doctor as root"
NEWER_KERNEL = (
    "boot Linux 6.12.37 or newer of 6.12, or 6.18 or newer; "
    "on Debian 12: apt install -t bookworm-backports linux-image-amd64"
)


class Kernel(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen of the kernel."""

    #: What `uname -r` prints.
    release: str
    #: Bits of the features of a userfaultfd made from the device; None where there is none.
    uffd_features: int | None = None
    #: Why there is none.
    uffd_problem: str = ""
    #: Whether it is only that we may not.
    uffd_forbidden: bool = False
    #: None: /proc/self/pagemap cannot be opened.
    has_pagemap_scan: bool | None = True
    overcommit_memory: int = 0
    max_map_count: int = MAPPINGS
    has_psi: bool = True


def version_of(release: str) -> tuple[int, int, int]:
    """Return the three numbers of a release; zeros where it has none."""
    match = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", release)
    return (int(match[1]), int(match[2]), int(match[3] or 0)) if match else (0, 0, 0)


def kernel(seen: Kernel) -> Finding:
    """Whether it moves pages without losing one: what the engine itself asks (`client/probe.c`)."""
    version = version_of(seen.release)
    if version >= (6, 18, 0) or (version[:2] == (6, 12) and version[2] >= 37):
        return Finding(Verdict.PASS, f"Linux {seen.release}")
    return Finding(
        Verdict.FAIL, f"Linux {seen.release} moves memory unsafely or not at all", NEWER_KERNEL
    )


def userfaultfd(seen: Kernel) -> Finding:
    """Whether a broker, which hands it to its guests, can have a userfaultfd with all that is needed."""
    if seen.uffd_features is None:
        if seen.uffd_forbidden:
            return Finding(Verdict.WARN, f"not examined: {seen.uffd_problem}", AS_ROOT)
        return Finding(
            Verdict.FAIL,
            seen.uffd_problem,
            "use a kernel with CONFIG_USERFAULTFD=y; in a container: pass the device in",
        )
    lacking = [name for bit, name in NEEDED_FEATURES.items() if not seen.uffd_features & (1 << bit)]
    if lacking:
        return Finding(Verdict.FAIL, f"lacks {', '.join(lacking)}", NEWER_KERNEL)
    return Finding(Verdict.PASS, "/dev/userfaultfd moves and write-protects pages")


def pagemap_scan(seen: Kernel) -> Finding:
    """Whether it tells which pages were written since the last visit."""
    if seen.has_pagemap_scan:
        return Finding(Verdict.PASS, "tells which pages were written")
    if seen.has_pagemap_scan is None:
        return Finding(Verdict.WARN, "not examined: /proc/self/pagemap cannot be opened", AS_ROOT)
    return Finding(Verdict.FAIL, "no PAGEMAP_SCAN (Linux 6.7)", NEWER_KERNEL)


def overcommit(seen: Kernel) -> Finding:
    """Whether memory that is mapped from a store is charged as if it were private."""
    if seen.overcommit_memory == 2:
        return Finding(
            Verdict.FAIL,
            "vm.overcommit_memory is 2: what guests share would be charged as private",
            "sysctl -w vm.overcommit_memory=0, and look for it in /etc/sysctl.d",
        )
    return Finding(Verdict.PASS, f"vm.overcommit_memory is {seen.overcommit_memory}")


def mappings(seen: Kernel) -> Finding:
    """Whether a large guest may have enough mappings."""
    if seen.max_map_count >= MAPPINGS:
        return Finding(Verdict.PASS, f"vm.max_map_count is {seen.max_map_count}")
    return Finding(
        Verdict.WARN,
        f"vm.max_map_count is {seen.max_map_count}: enough for a guest of about "
        f"{human_bytes(seen.max_map_count * MAPPED_BYTES)}, scattered pages beyond stay private",
        f"sysctl -w vm.max_map_count={MAPPINGS}",
    )


def pressure(seen: Kernel) -> Finding:
    """Whether it tells how long tasks wait for memory."""
    if seen.has_psi:
        return Finding(Verdict.PASS, "the kernel tells it")
    return Finding(
        Verdict.WARN,
        "no /proc/pressure: the daemon sees free memory only, not who waits for it",
        "add psi=1 to the kernel's command line",
    )


PROBES: tuple[Probe[Kernel], ...] = (
    kernel,
    userfaultfd,
    pagemap_scan,
    overcommit,
    mappings,
    pressure,
)

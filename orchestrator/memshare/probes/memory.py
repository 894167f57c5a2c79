# SPDX-License-Identifier: GPL-2.0-or-later
"""Who else manages this host's memory, and does it undo what sharing does?"""

import msgspec

from memshare.probes import Finding, Probe, Verdict
from memshare.render import human_bytes

HUGE_PAGES = "/sys/kernel/mm/transparent_hugepage"


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen of it. Empty or None is what this kernel does not have."""

    #: Transparent huge pages: `always`, `madvise` or `never`.
    huge_pages: str = ""
    #: What a fault does for want of a huge page: `always`, `defer`, ...
    huge_pages_defrag: str = ""
    #: How many of a huge page's 512 may be absent when khugepaged makes one.
    khugepaged_max_ptes_none: int | None = None
    #: KSM: `0` stopped, `1` merging, `2` un-merging.
    ksm_run: str = ""
    ksm_pages_sharing: int = 0
    #: Process ids of programs that set KSM's knobs.
    ksmtuned: tuple[int, ...] = ()
    #: Memory set aside as huge pages, by the folder of their size below /sys/kernel/mm/hugepages.
    reserved_bytes: dict[str, int] = {}
    swap_bytes: int = 0


def huge_page_stalls(seen: Memory) -> Finding:
    """Whether a guest that touches what was given back waits for memory to be compacted."""
    if seen.huge_pages in ("", "never"):
        return Finding(Verdict.PASS, "no transparent huge pages")
    if seen.huge_pages_defrag == "always":
        return Finding(
            Verdict.WARN,
            "guests wait for compaction when they touch memory that was given back",
            f"echo defer+madvise > {HUGE_PAGES}/defrag",
        )
    return Finding(
        Verdict.PASS, f"huge pages {seen.huge_pages}, defrag {seen.huge_pages_defrag or 'unknown'}"
    )


def khugepaged(seen: Memory) -> Finding:
    """Whether khugepaged fills what was given back."""
    holes = seen.khugepaged_max_ptes_none
    if seen.huge_pages in ("", "never") or not holes:
        return Finding(Verdict.PASS, "fills no holes")
    return Finding(
        Verdict.WARN,
        f"khugepaged makes huge pages where up to {holes} of 512 pages are holes: "
        "what was given back is filled again",
        f"echo 0 > {HUGE_PAGES}/khugepaged/max_ptes_none",
    )


def ksm(seen: Memory) -> Finding:
    """Whether the kernel merges pages too."""
    if seen.ksm_run != "1":
        return Finding(Verdict.PASS, "not running" if seen.ksm_run else "not built in")
    return Finding(
        Verdict.WARN,
        f"ksmd merges too, {human_bytes(seen.ksm_pages_sharing * 4096)} now: "
        "across groups, and for guests without memshare only",
        "echo 0 > /sys/kernel/mm/ksm/run, unless such guests are to be merged",
    )


def ksm_tuner(seen: Memory) -> Finding:
    """Whether a program sets KSM's knobs."""
    if not seen.ksmtuned:
        return Finding(Verdict.PASS, "no ksmtuned")
    return Finding(
        Verdict.WARN,
        f"ksmtuned (process {seen.ksmtuned[0]}) sets KSM's knobs: memshare leaves them alone",
        "systemctl disable --now ksmtuned",
    )


def reserved_huge_pages(seen: Memory) -> Finding:
    """Whether memory is set aside where nothing can be shared."""
    reserved = {size: count for size, count in seen.reserved_bytes.items() if count}
    if not reserved:
        return Finding(Verdict.PASS, "none")
    return Finding(
        Verdict.WARN,
        f"{human_bytes(sum(reserved.values()))} are set aside as huge pages: guests on them do not "
        "share, others cannot use them",
        "; ".join(f"echo 0 > /sys/kernel/mm/hugepages/{size}/nr_hugepages" for size in reserved)
        + ", unless guests need them",
    )


def swap(seen: Memory) -> Finding:
    """Whether there is room for memory that guests un-share all at once."""
    if seen.swap_bytes:
        return Finding(Verdict.PASS, human_bytes(seen.swap_bytes))
    return Finding(
        Verdict.WARN,
        "no swap: when many guests write to what they share, nothing but the daemon's reserve is "
        "between them and the OOM killer",
        "fallocate -l 8G /swapfile && chmod 600 /swapfile && mkswap /swapfile && swapon /swapfile",
    )


PROBES: tuple[Probe[Memory], ...] = (
    huge_page_stalls,
    khugepaged,
    ksm,
    ksm_tuner,
    reserved_huge_pages,
    swap,
)

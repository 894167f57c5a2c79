# SPDX-License-Identifier: GPL-2.0-or-later
"""Snapshots of guests, as they were at one moment. Bytes, pages and nanoseconds only.

The structs ignore fields they do not know: a guest keeps its plugin for months, and a newer one says
more than this reader understands.
"""

from collections.abc import Mapping
from enum import StrEnum

import msgspec

PLUGIN_FILE = "libmemshare-qemu.so"
#: As MSH_SKIPPED_PER_SCANNED in stats.h.
SKIPPED_PER_SCANNED = 32
#: The problem of a guest that has answered, and has no plugin.
WITHOUT_PLUGIN = "runs without memshare"


class Mode(StrEnum):
    """What a guest may share."""

    OFF = "off"
    ZERO = "zero"
    CONTENT = "content"


class Option(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """What the owner of a guest wants. Rates are pages scanned a second.

    group None: the host decides (see `domain/group.py`). max_rate None: no ceiling of the guest's own.
    """

    group: str | None = None
    mode: Mode = Mode.CONTENT
    min_rate: int = 0
    max_rate: int | None = None
    weight: int = 1

    def clamp(self, rate: int) -> int:
        """Return the rate nearest to this one that the owner allows."""
        return max(self.min_rate, rate if self.max_rate is None else min(rate, self.max_rate))


class PageStats(msgspec.Struct, frozen=True, kw_only=True):
    """What one engine reports about itself: `stats` of the QOM object, field for field.

    Gauges tell what is now, counters (`breaks`, `passes` and the like) only grow. `saved_*` are not
    net: `overhead_bytes` is what they cost.
    """

    version: str
    protocol: int | str
    state: str
    refusal: str
    group: str
    mode: str
    scan_rate_pages: int
    cpu_limit_percent: int
    ram_bytes: int
    present_pages: int
    shared_pages: int
    broken_pages: int
    zero_pages: int
    unique_pages: int
    volatile_pages: int
    tracked_pages: int
    saved_content_bytes: int
    saved_zero_bytes: int
    overhead_bytes: int
    scanned_pages: int
    skipped_pages: int = 0  # not told by the first plugins, and neither is the next
    changed_pages: int = 0
    hashed_pages: int
    merged_pages: int
    zeroed_pages: int
    breaks: int
    rebuilt_pages: int
    compare_failures: int
    pinned_skips: int
    scan_cpu_ns: int
    windows: int
    window_time_ns: list[int]
    slept_faults: int
    mappings: int
    mappings_limit: int
    passes: int
    pass_age_ns: int

    @property
    def known_mode(self) -> Mode | None:
        """The mode in force; None where the plugin knows one that this reader does not."""
        return Mode(self.mode) if self.mode in list(Mode) else None

    @property
    def paid_pages(self) -> int:
        """What was paid of the scan rate so far: a page that nobody wrote to costs a small part of one."""
        return self.scanned_pages + self.skipped_pages // SKIPPED_PER_SCANNED

    @property
    def saved_bytes(self) -> int:
        """What sharing saves here, net of its own costs; negative when it costs more."""
        return self.saved_content_bytes + self.saved_zero_bytes - self.overhead_bytes


class Domain(msgspec.Struct, frozen=True, kw_only=True):
    """One guest that runs: who it is, what its owner wants, its figures when it runs memshare.

    source is the folder of its QMP socket or the URI of its libvirt. A guest on a bare socket has no
    option, and a uuid only if its QEMU was given one; for one of libvirt `group` is where it belongs, which is in
    force only if its stats say the same, and owner_group where it would belong, attached or not. `stats` is None for a
    guest without the plugin and for one that did not answer; `problem` says which.
    """

    name: str
    source: str = ""
    uuid: str = ""
    option: Option | None = None
    group: str | None = None
    owner_group: str | None = None
    stats: PageStats | None = None
    problem: str = ""
    answered: bool = True


class KsmCounters(msgspec.Struct, frozen=True, kw_only=True):
    """What the kernel's KSM says of all that it scans. Names as in /sys/kernel/mm/ksm.

    Of pages that were merged pages_shared are those that are left, pages_sharing those that are saved. Counters
    follow ksmd: what was written to, or has ended, since its last visit is still in them. pages_scanned is None
    before Linux 6.6.
    """

    pages_shared: int
    pages_sharing: int
    pages_unshared: int
    pages_volatile: int
    zero_pages: int
    full_scans: int
    pages_scanned: int | None
    profit_bytes: int

    @property
    def saved_pages(self) -> int:
        """How many pages are saved, those of zeros included."""
        return self.pages_sharing + self.zero_pages

    @property
    def known_pages(self) -> int:
        """How many pages ksmd keeps something about."""
        return self.pages_shared + self.pages_sharing + self.pages_unshared + self.pages_volatile


class KsmStats(msgspec.Struct, frozen=True, kw_only=True):
    """What the kernel's KSM says of one process. profit_bytes: saved by it, less what KSM keeps about it."""

    merging_pages: int
    zero_pages: int
    rmap_items: int
    profit_bytes: int

    @property
    def unshare_pages(self) -> int:
        """How many pages come into use if the process writes to all that was merged."""
        return self.merging_pages + self.zero_pages


class KsmView(msgspec.Struct, frozen=True, kw_only=True):
    """The kernel's KSM at the last look, and what is made of it. guests are those that it scans, by name.

    phase is one of policy/ksm.py, or `unavailable`; counters is None when they cannot be read.
    """

    phase: str
    reason: str
    counters: KsmCounters | None = None
    ksmd_cpu_ns: int = 0
    knobs: Mapping[str, str] = msgspec.field(default_factory=dict)
    guests: Mapping[str, KsmStats] = msgspec.field(default_factory=dict)


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """One guest as the broker sees it. cost_bytes is what its grants and messages hold there."""

    guest: str
    state: str
    pid: int
    uid: int
    grants: int
    cost_bytes: int


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """One group's store and table in the broker. Counters from `sightings` on only grow."""

    name: str
    socket: str
    members: int
    segments: int
    store_bytes: int
    slots_live: int
    slots_dead: int
    grants: int
    table_entries: int
    table_bytes: int
    sightings: int
    provides: int
    rejected_provides: int
    matches: int
    releases: int
    bad_releases: int
    refused_full: int
    sessions: list[Session]


class Broker(msgspec.Struct, frozen=True, kw_only=True):
    """The broker's answer to `status`."""

    version: str
    protocol: int
    pid: int
    groups: list[Group]


class GroupAudit(msgspec.Struct, frozen=True, kw_only=True):
    """The broker's answer to `audit`: how much it looked at, and what is not as it was counted.

    problems has the first of problem_count in words. hashed_slots were compared with the hash of what was
    shared.
    """

    group: str
    slots: int
    grants: int
    entries: int
    hashed_slots: int
    problem_count: int
    problems: list[str]

# SPDX-License-Identifier: GPL-2.0-or-later
"""Snapshots of guests, as they were at one moment. Bytes, pages and nanoseconds only.

The structs ignore fields they do not know: a guest keeps its plugin for months, and a newer one says
more than this reader understands.
"""

import msgspec


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
    def saved_bytes(self) -> int:
        """What sharing saves here, net of its own costs; negative when it costs more."""
        return self.saved_content_bytes + self.saved_zero_bytes - self.overhead_bytes


class Domain(msgspec.Struct, frozen=True, kw_only=True):
    """One guest: its name and, when it runs memshare, its figures.

    `stats` is None for a guest without the plugin and for one that did not answer; `problem` says
    which.
    """

    name: str
    stats: PageStats | None = None
    problem: str = ""
    answered: bool = True

# SPDX-License-Identifier: GPL-2.0-or-later
"""What the policy is told: one look at a host and its guests. Counters as they were read, no rates.

Rates are made from two looks by who needs them, so that whoever looks keeps nothing in mind and a
recording holds what was seen, not what was concluded.
"""

from collections.abc import Mapping

import msgspec

from memshare.model import Option, PageStats

PAGE_BYTES = 4096


class Host(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Memory and CPU of a host, or of the cgroup that bounds the guests.

    cpus are those that may be used, a fraction under a quota. A limit of 0 is none; what is used of it is
    without clean page cache, which the kernel gives back before it kills. `psi_*_ns` are the `total` of
    the memory pressure file (the cgroup's where there is a limit), `swapped_in_pages` is `pswpin`; both
    only grow.
    """

    cpus: float
    total_bytes: int
    available_bytes: int
    limit_bytes: int = 0
    limit_used_bytes: int = 0
    psi_some_ns: int = 0
    psi_full_ns: int = 0
    swapped_in_pages: int = 0

    @property
    def capacity_bytes(self) -> int:
        """All the memory that guests could ever have."""
        return min(self.total_bytes, self.limit_bytes or self.total_bytes)

    @property
    def headroom_bytes(self) -> int:
        """What may still come into use before somebody is killed."""
        if not self.limit_bytes:
            return max(0, self.available_bytes)
        return max(0, min(self.available_bytes, self.limit_bytes - self.limit_used_bytes))


class Guest(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One guest that answered: what its owner wants, what its engine says.

    domain is unique on the host. taken_ns is when stats were read, which may be long before the snapshot
    was taken: a monitor that is late costs this guest fresh figures and nobody else anything. is_held: the
    operator has paused it. balloon_bytes is the RAM that its balloon leaves it; None without a balloon.
    """

    domain: str
    taken_ns: int
    stats: PageStats
    option: Option = Option()
    is_held: bool = False
    balloon_bytes: int | None = None

    @property
    def ram_pages(self) -> int:
        """Pages of registered RAM."""
        return self.stats.ram_bytes // PAGE_BYTES

    @property
    def unshare_bytes(self) -> int:
        """What would come into use if the guest wrote to all that it shares: contents and zeros."""
        return (self.stats.shared_pages + self.stats.zero_pages) * PAGE_BYTES


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """One look. taken_ns is of a clock that never goes back, the same as the guests'. may_inflate: whether the
    operator lets balloons take memory; what they took before is given back in any case. merged_bytes is, by domain,
    what comes into use if the guest writes to all that the kernel's KSM merged, with or without the plugin in it."""

    taken_ns: int
    host: Host
    guests: tuple[Guest, ...] = ()
    merged_bytes: Mapping[str, int] = msgspec.field(default_factory=dict)
    may_inflate: bool = True

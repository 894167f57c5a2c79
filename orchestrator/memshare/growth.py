# SPDX-License-Identifier: GPL-2.0-or-later
"""How fast a guest's counters grow, from two looks. Pure."""

from collections.abc import Sequence

import msgspec

from memshare.model import Domain, PageStats


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """All guests at one moment, by a clock that never goes back."""

    taken_ns: int
    domains: Sequence[Domain]


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """One guest between two looks, a second. scan_cpu_ratio is in cores: 1.0 is a whole one."""

    scanned_pages_per_second: float
    merged_pages_per_second: float
    breaks_per_second: float
    scan_cpu_ratio: float

    def __add__(self, other: "Rates") -> "Rates":
        """Return what both do together."""
        return Rates(
            **{name: getattr(self, name) + getattr(other, name) for name in self.__struct_fields__}
        )


def identity(domain: Domain) -> tuple[str, str]:
    """Return what tells a guest from all others of this host."""
    return domain.source, domain.name


def rates(before: Look, now: Look) -> dict[tuple[str, str], Rates]:
    """Return the rates of guests that have figures in both looks; one that was started anew has none yet."""
    seconds = (now.taken_ns - before.taken_ns) / 1e9
    earlier = {identity(each): each.stats for each in before.domains if each.stats is not None}
    found = {}
    for domain in now.domains:
        old = earlier.get(identity(domain))
        if old is None or domain.stats is None or seconds <= 0:
            continue
        each = _between(old, domain.stats, seconds)
        if each is not None:
            found[identity(domain)] = each
    return found


def _between(old: PageStats, new: PageStats, seconds: float) -> Rates | None:
    grown = [
        new.scanned_pages - old.scanned_pages,
        new.merged_pages + new.zeroed_pages - old.merged_pages - old.zeroed_pages,
        new.breaks - old.breaks,
        new.scan_cpu_ns - old.scan_cpu_ns,
    ]
    if min(grown) < 0:  # counters only grow: it is another process
        return None
    scanned, merged, breaks, cpu_ns = grown
    return Rates(
        scanned_pages_per_second=scanned / seconds,
        merged_pages_per_second=merged / seconds,
        breaks_per_second=breaks / seconds,
        scan_cpu_ratio=cpu_ns / 1e9 / seconds,
    )

# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest as a few numbers of pages, and the engine that scans it as rates between them.

    fresh   common, written since it was last visited      --visit-->  ripe
    ripe    common, seen stable once                       --visit-->  shared
    zero    zeros                                          --visit-->  given
    unique  unlike all others; hashed once, then cheap to pass by
    hot     written all the time
    shared, given (as zero)                                --write-->  fresh, or unique if it differs for ever

Pages of each kind are spread evenly, so a visit of r of n pages meets r/n of each kind. It is no model of
memory; it has what the policy depends on: two visits before anything merges, dear merges, nearly free passes,
savings that end, and break.
"""

import math
from dataclasses import dataclass, field

import msgspec

from memshare.model import Option, PageStats
from memshare.policy.snapshot import PAGE_BYTES, Guest

VISIT_NS = 4.0  # a page that nobody wrote
HASH_NS = 400.0
MERGE_NS = 6000.0
ZERO_NS = 500.0

# An engine that has done nothing yet; what is not modelled stays 0.
SILENT = msgspec.convert(
    dict.fromkeys(PageStats.__struct_fields__, 0)
    | {"version": "simulated", "group": "default", "mode": "content", "window_time_ns": []}
    | {"state": "paused", "refusal": ""},
    PageStats,
)


@dataclass(kw_only=True)
class SimulatedGuest:
    """All pages are counts, fractions of one included. RAM less all kinds was never touched.

    breaks is the share of its shared pages that the guest writes to per second, of which differ_ratio never
    become common again. writes is how many unique pages it writes per second.
    """

    domain: str
    ram_pages: int
    fresh: float = 0.0
    zero: float = 0.0
    unique: float = 0.0
    hot: float = 0.0
    breaks: float = 0.0
    differ_ratio: float = 0.0
    writes: float = 0.0
    option: Option = field(default_factory=Option)
    has_balloon: bool = True
    ripe: float = 0.0
    shared: float = 0.0
    given: float = 0.0
    unhashed: float = 0.0
    rate_pages: float = 0.0
    limit_percent: int = 0
    balloon_pages: float = math.inf
    scanned: float = 0.0
    cpu_ns: float = 0.0
    merged: float = 0.0
    zeroed: float = 0.0
    broken: float = 0.0
    hashed: float = 0.0

    def __post_init__(self) -> None:
        """Nothing was ever hashed."""
        self.unhashed = self.unique

    @property
    def private_pages(self) -> float:
        """Page frames of its own."""
        return self.fresh + self.ripe + self.zero + self.unique + self.hot

    @property
    def ram_left_pages(self) -> float:
        """What its balloon leaves it."""
        return min(self.ram_pages, self.balloon_pages)

    def turn(self, pages: float) -> None:
        """Make unique pages common: another guest has begun to hold the same."""
        pages = min(pages, self.unique)
        self.unique -= pages
        self.unhashed = min(self.unhashed, self.unique)
        self.fresh += pages

    def live(self, seconds: float) -> None:
        """Let it write."""
        part = -math.expm1(-self.breaks * seconds)
        broken, refilled = self.shared * part, self.given * part
        self.shared -= broken
        self.given -= refilled
        self.broken += broken
        differing = (broken + refilled) * self.differ_ratio
        self.fresh += broken + refilled - differing
        self.unique += differing
        self.unhashed = min(self.unique, self.unhashed + differing + self.writes * seconds)
        self._squeeze()

    def scan(self, seconds: float) -> None:
        """Let its engine visit pages, as many as rate and CPU limit allow."""
        wanted = self.rate_pages * seconds
        if wanted <= 0:
            return
        dear = self._cost_ns(min(1.0, wanted / self.ram_pages)) + wanted * VISIT_NS
        limit_ns = self.limit_percent * 1e7 * seconds if self.limit_percent else math.inf
        visited = wanted * min(1.0, limit_ns / dear)
        part = min(1.0, visited / self.ram_pages)
        self.scanned += visited
        self.cpu_ns += self._cost_ns(part) + visited * VISIT_NS
        merged, ripened, zeroed = self.ripe * part, self.fresh * part, self.zero * part
        self.hashed += ripened + self.unhashed * part
        self.unhashed *= 1 - part
        self.ripe += ripened - merged
        self.fresh -= ripened
        self.zero -= zeroed
        self.shared += merged
        self.given += zeroed
        self.merged += merged
        self.zeroed += zeroed

    def look(self, now_ns: int) -> Guest:
        """What a monitor would say now."""
        stats = msgspec.structs.replace(
            SILENT,
            state="running" if self.rate_pages else "paused",
            scan_rate_pages=int(self.rate_pages),
            cpu_limit_percent=self.limit_percent,
            ram_bytes=self.ram_pages * PAGE_BYTES,
            present_pages=int(self.private_pages + self.shared),
            shared_pages=int(self.shared),
            zero_pages=int(self.given),
            unique_pages=int(self.unique),
            volatile_pages=int(self.hot),
            saved_content_bytes=int(self.shared) * PAGE_BYTES,
            saved_zero_bytes=int(self.given) * PAGE_BYTES,
            scanned_pages=int(self.scanned),
            hashed_pages=int(self.hashed),
            merged_pages=int(self.merged),
            zeroed_pages=int(self.zeroed),
            breaks=int(self.broken),
            scan_cpu_ns=int(self.cpu_ns),
            passes=int(self.scanned / self.ram_pages),
        )
        return Guest(
            domain=self.domain,
            taken_ns=now_ns,
            stats=stats,
            option=self.option,
            balloon_bytes=int(self.ram_left_pages) * PAGE_BYTES if self.has_balloon else None,
        )

    def _cost_ns(self, part: float) -> float:
        """Of visiting a part of its pages, beyond passing by."""
        hashed = self.fresh + self.unhashed + self.hot
        return part * (hashed * HASH_NS + self.ripe * MERGE_NS + self.zero * ZERO_NS)

    def _squeeze(self) -> None:
        """Give to the balloon what does not fit any more: private pages, as a guest gives up its page cache."""
        used = self.private_pages + self.shared + self.given
        excess = used - self.ram_left_pages
        for kind in ("given", "zero", "fresh", "ripe", "unique", "hot", "shared"):
            if excess <= 0:
                return
            taken = min(excess, getattr(self, kind))
            setattr(self, kind, getattr(self, kind) - taken)
            excess -= taken

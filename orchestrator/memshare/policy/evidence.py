# SPDX-License-Identifier: GPL-2.0-or-later
"""What a guest's counters prove about scanning it: bytes kept per CPU second, cost, breaks.

    yield = sum(merged bytes * survival) / sum(CPU seconds)       over looks, older ones fading
    survival = shared / (shared + breaks per second * keep_seconds)

By Little's law, shared / (breaks per second) is how long a page stays shared. A page that is written to as
soon as it is merged is worth nothing, one that lives much longer than keep_seconds counts in full; so a guest
whose sharing is stable at a slow churn is still worth the scanning that keeps it up, which merges less
breaks, about zero there, would deny.

Both sums fade by the same factor, half after `evidence_passes` of a pass or after `evidence_seconds`. By
passes, because a guest's RAM differs from place to place: whoever forgets within a pass judges a guest by
the megabytes that the scan went through last; passes quicker than pass_seconds count as that long, or a small
guest would be judged by one second. By time, because a barren guest is visited seldom: however old
the proof against it is, what is found now soon weighs as much. Where nothing is scanned both fade alike, and
the yield stays what it was.

What is known of a guest is of no use once its memory has changed. It has where much of what is visited turns out to
be written to, and suddenly: where a guest is only visited less often than before, that part grows over a
pass, and a mean over some looks keeps up. Such a guest is new again, and need not wait for its few visits to prove it fertile.
"""

import math

import msgspec

from memshare.model import PageStats
from memshare.policy.config import Config
from memshare.policy.snapshot import PAGE_BYTES, Guest

COST_DEFAULT_NS = 1000.0  # a page, before anything was measured
COST_HALF_SECONDS = 10.0
COST_MIN_NS = 2.0
DOUBT_NS = 500_000.0  # what hashing a block costs, about
PROOF_RATIO = 1 / 16  # of a pass: less than that was visited, and nothing is known
NEWS_PAGES = 256  # visited since the last look: fewer tell nothing
NEWS_RATIO = 1 / 4  # of them changed, beyond NEWS_TIMES the part that did so far
NEWS_TIMES = 2.0
NEWS_SECONDS = 10.0  # half of that part is of so long ago


class Evidence(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """All that is remembered of one guest: the last look, and sums that fade.

    page_cost_ns follows a rise at once and a fall slowly: a scan that comes to pages that merge costs a
    thousand times one that finds nothing written, and the CPU budget is kept by whoever expects that.
    """

    taken_ns: int
    stats: PageStats
    kept_bytes: float = 0.0
    spent_cpu_ns: float = 0.0
    visited_passes: float = 0.0
    broken_pages: float = 0.0
    changed_ratio: float | None = None  # of what is visited, of late
    watched_ns: float = 0.0
    page_cost_ns: float = COST_DEFAULT_NS
    is_proven: bool = False
    new_until_passes: int = 0  # since its memory has changed

    @property
    def yield_bytes(self) -> float:
        """Bytes kept per CPU second.

        Where nothing was written passing by is so cheap that a single page merged in minutes would look like
        full speed; DOUBT_NS are charged on top, so that it takes some dozens.
        """
        return self.kept_bytes * 1e9 / (self.spent_cpu_ns + DOUBT_NS)

    @property
    def break_bytes(self) -> float:
        """Bytes a second that came back into use of late."""
        return self.broken_pages * PAGE_BYTES * 1e9 / self.watched_ns if self.watched_ns else 0.0


def observe(guest: Guest, before: Evidence | None, config: Config) -> Evidence:
    """Return what is known after this look.

    An engine that started anew (its counters fell) is a new guest. Its first passes count for its cost
    only: the first arms the tracking of writes, the second hashes, and partners have to be seen.
    """
    now = guest.stats
    if before is None or any(
        getattr(now, name) < getattr(before.stats, name)
        for name in (
            "paid_pages",
            "passes",
            "changed_pages",
            "scan_cpu_ns",
            "merged_pages",
            "zeroed_pages",
            "breaks",
        )
    ):
        return Evidence(taken_ns=guest.taken_ns, stats=now)
    elapsed_ns = guest.taken_ns - before.taken_ns
    if elapsed_ns <= 0:
        return before  # the same look again: this guest did not answer since
    last = before.stats
    scanned_pages = now.paid_pages - last.paid_pages
    # Where next to nothing is written a pass is paid with a small part of the RAM's pages, and where little of the RAM is
    # in use it has few: it is a pass all the same.
    visited_passes = max(now.passes - last.passes, scanned_pages / max(1, guest.ram_pages))
    cpu_ns = now.scan_cpu_ns - last.scan_cpu_ns
    zeroed_pages = now.zeroed_pages - last.zeroed_pages
    # The touch of a hole is no break, but fewer zeros are left than were made.
    refilled_pages = max(0, zeroed_pages - (now.zero_pages - last.zero_pages))
    broken_pages = now.breaks - last.breaks + refilled_pages

    fade = math.exp2(
        -min(visited_passes, elapsed_ns / (config.pass_seconds * 1e9)) / config.evidence_passes
        - elapsed_ns / (config.evidence_seconds * 1e9)
    )
    broken = before.broken_pages * fade + broken_pages
    watched_ns = before.watched_ns * fade + elapsed_ns
    new_until_passes = max(config.new_passes, before.new_until_passes)
    looked_pages = now.scanned_pages + now.skipped_pages - last.scanned_pages - last.skipped_pages
    changed_ratio = before.changed_ratio
    if looked_pages >= NEWS_PAGES:
        changed_ratio = (now.changed_pages - last.changed_pages) / looked_pages
    if (
        now.passes >= new_until_passes
        and before.changed_ratio is not None
        and changed_ratio is not None
        and changed_ratio > NEWS_RATIO + NEWS_TIMES * before.changed_ratio
    ):
        new_until_passes = now.passes + config.new_passes
    is_new = now.passes < new_until_passes
    visited = 0.0 if is_new else before.visited_passes * fade + visited_passes
    shared_pages = now.shared_pages + now.zero_pages
    leaving_pages = broken * 1e9 / watched_ns * config.keep_seconds
    survival = shared_pages / (shared_pages + leaving_pages) if shared_pages else 0.0
    merged_bytes = (now.merged_pages - last.merged_pages + zeroed_pages) * PAGE_BYTES
    return Evidence(
        taken_ns=guest.taken_ns,
        stats=now,
        kept_bytes=0.0 if is_new else before.kept_bytes * fade + merged_bytes * survival,
        spent_cpu_ns=0.0 if is_new else before.spent_cpu_ns * fade + cpu_ns,
        visited_passes=visited,
        broken_pages=broken,
        changed_ratio=_mean(before.changed_ratio, changed_ratio, elapsed_ns),
        watched_ns=watched_ns,
        page_cost_ns=_cost(before.page_cost_ns, scanned_pages, cpu_ns, elapsed_ns),
        is_proven=not is_new and (before.is_proven or visited >= PROOF_RATIO),
        new_until_passes=new_until_passes,
    )


def _mean(before: float | None, seen: float | None, elapsed_ns: int) -> float | None:
    if before is None or seen is None:
        return seen
    return seen + (before - seen) * math.exp2(-elapsed_ns / (NEWS_SECONDS * 1e9))


def _cost(before_ns: float, scanned_pages: int, cpu_ns: int, elapsed_ns: int) -> float:
    if scanned_pages == 0:
        return before_ns
    seen_ns = max(COST_MIN_NS, cpu_ns / scanned_pages)
    if seen_ns >= before_ns:
        return seen_ns
    return seen_ns + (before_ns - seen_ns) * math.exp2(-elapsed_ns / (COST_HALF_SECONDS * 1e9))

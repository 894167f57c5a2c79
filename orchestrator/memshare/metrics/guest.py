# SPDX-License-Identifier: GPL-2.0-or-later
"""The metrics of guests: what each shares, what scanning it costs, the rate it is held to and why.

The figures of a guest that is late are those of its last answer; memshare_domain_up and
memshare_domain_last_answer_timestamp_seconds tell.
"""

import math
from collections.abc import Callable, Mapping

from memshare.daemon.view import View
from memshare.metrics.metric import Kind, Metric, Read, Samples, after_a_look
from memshare.model import Domain, PageStats
from memshare.policy import Guest
from memshare.policy.rates import Rate
from memshare.policy.snapshot import PAGE_BYTES

DOMAIN = ("domain",)
DOMAIN_KIND = ("domain", "kind")
RATE_UNLIMITED_PAGES = (1 << 64) - 1  # MSH_RATE_UNLIMITED of memshare/stats.h


def _found(value: Callable[[Domain], float]) -> Read:
    """Read a figure of each guest that was found, whether it answered or not."""

    @after_a_look
    def read(view: View) -> Samples:
        for domain in view.domains:
            yield (domain.name,), value(domain)

    return read


def _guest(value: Callable[[Guest], float | None]) -> Read:
    """Read a figure of each guest that has an engine; none where it is None."""

    @after_a_look
    def read(view: View) -> Samples:
        for guest in view.snapshot.guests:
            if (figure := value(guest)) is not None:
                yield (guest.domain,), figure

    return read


def _stats(value: Callable[[PageStats], float]) -> Read:
    return _guest(lambda guest: value(guest.stats))


def _kinds(values: Callable[[PageStats], Mapping[str, float]]) -> Read:
    """Read a figure of each guest for each kind."""

    @after_a_look
    def read(view: View) -> Samples:
        for guest in view.snapshot.guests:
            for kind, figure in values(guest.stats).items():
                yield (guest.domain, kind), figure

    return read


def _rate(value: Callable[[Rate], float]) -> Read:
    """Read a figure of what was decided for each guest that can be steered."""

    @after_a_look
    def read(view: View) -> Samples:
        for domain, rate in view.decision.rates.items():
            yield (domain,), value(rate)

    return read


@after_a_look
def _info(view: View) -> Samples:
    for domain in view.domains:
        if domain.stats is not None:
            group, mode, state = domain.stats.group, domain.stats.mode, domain.stats.state
        else:
            group, mode = domain.group or "", domain.option.mode if domain.option else ""
            state = "not-sharing" if domain.answered else "unreachable"
        yield (domain.name, domain.uuid, group, mode, state), 1


def _answered_seconds(view: View, guest: Guest) -> float:
    """When a guest answered, by the time of day."""
    return view.taken_seconds - (view.snapshot.taken_ns - guest.taken_ns) / 1e9


@after_a_look
def _last_answers(view: View) -> Samples:
    for guest in view.snapshot.guests:
        yield (guest.domain,), _answered_seconds(view, guest)


@after_a_look
def _last_passes(view: View) -> Samples:
    for guest in view.snapshot.guests:
        if guest.stats.passes:
            yield (guest.domain,), _answered_seconds(view, guest) - guest.stats.pass_age_ns / 1e9


@after_a_look
def _windows(view: View) -> Samples:
    """Bucket i of the engine's holds what took less than 2^i us, its last one whatever took longer."""
    for guest in view.snapshot.guests:
        buckets = guest.stats.window_time_ns
        count = 0
        for position, more in enumerate(buckets):
            count += more
            is_last = position == len(buckets) - 1
            yield (guest.domain, "+Inf" if is_last else str((1 << position) / 1e6)), count


def _rate_in_force(stats: PageStats) -> float:
    return math.inf if stats.scan_rate_pages == RATE_UNLIMITED_PAGES else stats.scan_rate_pages


def _limit_in_force(stats: PageStats) -> float:
    return stats.cpu_limit_percent / 100 if stats.cpu_limit_percent else math.inf


METRICS = (
    Metric(
        "memshare_domain_info",
        Kind.GAUGE,
        ("domain", "uuid", "group", "mode", "state"),
        _info,
        "Always 1; the labels have the facts. state is the engine's, or `not-sharing` without one, or `unreachable`.",
        "`ksm_mergeable`, `ksm_merge_any`",
    ),
    Metric(
        "memshare_domain_up",
        Kind.GAUGE,
        DOMAIN,
        _found(lambda domain: domain.answered),
        "1 if the guest answered at the last look, with figures or without.",
    ),
    Metric(
        "memshare_domain_refused",
        Kind.GAUGE,
        DOMAIN,
        _stats(lambda stats: bool(stats.refusal)),
        "1 if the engine does not share, or not contents, though it should; `memshare status` has the reason.",
    ),
    Metric(
        "memshare_domain_held",
        Kind.GAUGE,
        DOMAIN,
        _guest(lambda guest: guest.is_held),
        "1 if the operator has paused the guest.",
    ),
    Metric(
        "memshare_domain_last_answer_timestamp_seconds",
        Kind.GAUGE,
        DOMAIN,
        _last_answers,
        "Of when its figures are, in seconds since 1970.",
    ),
    Metric(
        "memshare_domain_ram_bytes",
        Kind.GAUGE,
        DOMAIN,
        _stats(lambda stats: stats.ram_bytes),
        "RAM that the engine scans.",
    ),
    Metric(
        "memshare_domain_present_bytes",
        Kind.GAUGE,
        DOMAIN,
        _stats(lambda stats: stats.present_pages * PAGE_BYTES),
        "What of it was resident at the last visit.",
    ),
    Metric(
        "memshare_domain_balloon_bytes",
        Kind.GAUGE,
        DOMAIN,
        _guest(lambda guest: guest.balloon_bytes),
        "RAM that its balloon leaves it; absent without a balloon.",
    ),
    Metric(
        "memshare_domain_shared_bytes",
        Kind.GAUGE,
        DOMAIN_KIND,
        _kinds(
            lambda stats: {
                "zero": stats.zero_pages * PAGE_BYTES,
                "content": stats.shared_pages * PAGE_BYTES,
            }
        ),
        "Pages that are mapped from the store (`content`), or were given back because they held zeros only (`zero`).",
        "`ksm_merging_pages`, `ksm_zero_pages`",
    ),
    Metric(
        "memshare_domain_private_bytes",
        Kind.GAUGE,
        DOMAIN_KIND,
        _kinds(
            lambda stats: {
                "unique": stats.unique_pages * PAGE_BYTES,
                "volatile": stats.volatile_pages * PAGE_BYTES,
                "broken": stats.broken_pages * PAGE_BYTES,
            }
        ),
        "Pages of its own: stable and unlike all others (`unique`), changing (`volatile`), written to after they were shared "
        "(`broken`).",
        "`pages_unshared`, `pages_volatile`",
    ),
    Metric(
        "memshare_domain_tracked_bytes",
        Kind.GAUGE,
        DOMAIN,
        _stats(lambda stats: stats.tracked_pages * PAGE_BYTES),
        "Memory of which the kernel tells what was written.",
    ),
    Metric(
        "memshare_domain_saved_bytes",
        Kind.GAUGE,
        DOMAIN_KIND,
        _kinds(
            lambda stats: {"zero": stats.saved_zero_bytes, "content": stats.saved_content_bytes}
        ),
        "What sharing saves here, by `zero` and `content`; a page of the store is split among its sharers. "
        "memshare_domain_overhead_bytes is to be taken off.",
        "`ksm_process_profit`",
    ),
    Metric(
        "memshare_domain_overhead_bytes",
        Kind.GAUGE,
        DOMAIN,
        _stats(lambda stats: stats.overhead_bytes),
        "What sharing costs here: the engine's tables, mappings and page tables.",
        "`ksm_rmap_items`, each of 64 bytes",
    ),
    Metric(
        "memshare_domain_scan_rate_pages",
        Kind.GAUGE,
        DOMAIN,
        _stats(_rate_in_force),
        "Pages a second that the engine scans at most; +Inf without a limit.",
        "`pages_to_scan` each `sleep_millisecs`",
    ),
    Metric(
        "memshare_domain_scan_rate_wanted_pages",
        Kind.GAUGE,
        DOMAIN,
        _rate(lambda rate: rate.pages),
        "Pages a second that the policy decided on; `memshare explain` says why.",
    ),
    Metric(
        "memshare_domain_cpu_limit_ratio",
        Kind.GAUGE,
        DOMAIN,
        _stats(_limit_in_force),
        "What the engine may take of one core; +Inf without a limit.",
        "`advisor_max_cpu`",
    ),
    Metric(
        "memshare_domain_scan_value_ratio",
        Kind.GAUGE,
        DOMAIN,
        _rate(lambda rate: rate.value),
        "What scanning the guest is worth to the policy; 1 is full speed.",
    ),
    Metric(
        "memshare_domain_scan_yield_bytes",
        Kind.GAUGE,
        DOMAIN,
        _rate(lambda rate: rate.yield_bytes),
        "Bytes kept per CPU second of scanning, of late.",
    ),
    Metric(
        "memshare_scan_cpu_seconds_total",
        Kind.COUNTER,
        DOMAIN,
        _stats(lambda stats: stats.scan_cpu_ns / 1e9),
        "CPU time of the guest's engine.",
        "CPU time of ksmd",
    ),
    Metric(
        "memshare_domain_scanned_pages_total",
        Kind.COUNTER,
        DOMAIN,
        _stats(lambda stats: stats.scanned_pages),
        "Pages visited.",
        "`pages_scanned`",
    ),
    Metric(
        "memshare_domain_skipped_pages_total",
        Kind.COUNTER,
        DOMAIN,
        _stats(lambda stats: stats.skipped_pages),
        "Pages passed over, as nobody had written to them; 32 of them cost the scan rate one page.",
        "`pages_skipped`",
    ),
    Metric(
        "memshare_domain_changed_pages_total",
        Kind.COUNTER,
        DOMAIN,
        _stats(lambda stats: stats.changed_pages),
        "Pages visited or passed over that had changed since the visit before.",
    ),
    Metric(
        "memshare_domain_hashed_pages_total",
        Kind.COUNTER,
        DOMAIN,
        _stats(lambda stats: stats.hashed_pages),
        "Pages hashed: those that stood still.",
    ),
    Metric(
        "memshare_domain_passes_total",
        Kind.COUNTER,
        DOMAIN,
        _stats(lambda stats: stats.passes),
        "Complete visits of all its memory.",
        "`full_scans`",
    ),
    Metric(
        "memshare_domain_last_pass_timestamp_seconds",
        Kind.GAUGE,
        DOMAIN,
        _last_passes,
        "When the last pass ended, in seconds since 1970; absent before the first has.",
    ),
    Metric(
        "memshare_domain_shares_total",
        Kind.COUNTER,
        DOMAIN_KIND,
        _kinds(lambda stats: {"zero": stats.zeroed_pages, "content": stats.merged_pages}),
        "Pages that were shared (`content`) or given back as zeros (`zero`).",
    ),
    Metric(
        "memshare_domain_breaks_total",
        Kind.COUNTER,
        ("domain", "reason"),
        _kinds(lambda stats: {"write": stats.breaks}),
        "Shared pages that the guest wrote to, which made them private. The engine counts no other reason.",
        "`cow_ksm` in `/proc/vmstat`",
    ),
    Metric(
        "memshare_domain_rebuilt_pages_total",
        Kind.COUNTER,
        DOMAIN,
        _stats(lambda stats: stats.rebuilt_pages),
        "Pages given back to plain memory: broken ones in time, all of them in a drain.",
    ),
    Metric(
        "memshare_domain_compare_failures_total",
        Kind.COUNTER,
        DOMAIN,
        _stats(lambda stats: stats.compare_failures),
        "Pages that were not shared because their bytes differed when it came to it.",
    ),
    Metric(
        "memshare_domain_pinned_skips_total",
        Kind.COUNTER,
        DOMAIN,
        _stats(lambda stats: stats.pinned_skips),
        "Pages that were not shared because the kernel would not move them.",
    ),
    Metric(
        "memshare_window_duration_seconds",
        Kind.HISTOGRAM,
        ("domain", "le"),
        _windows,
        "How long the windows were open in which pages are replaced: a guest that touches one of these pages waits for its end. "
        "The engine keeps no sum.",
    ),
    Metric(
        "memshare_domain_slept_faults_total",
        Kind.COUNTER,
        DOMAIN,
        _stats(lambda stats: stats.slept_faults),
        "Accesses of the guest that are known to have waited for a window.",
    ),
    Metric(
        "memshare_domain_mappings",
        Kind.GAUGE,
        DOMAIN,
        _stats(lambda stats: stats.mappings),
        "Mappings of the guest's process.",
    ),
    Metric(
        "memshare_domain_mappings_limit",
        Kind.GAUGE,
        DOMAIN,
        _stats(lambda stats: stats.mappings_limit),
        "From here on the engine shares only what takes no more mappings: 80% of `vm.max_map_count`.",
    ),
)

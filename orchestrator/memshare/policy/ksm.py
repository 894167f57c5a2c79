# SPDX-License-Identifier: GPL-2.0-or-later
"""Steering the kernel's own KSM, for guests without an engine of ours: what ksmtuned does, and what it does not.

    who       guests of the host's default group whose owners let contents be shared, and nobody else
    how fast  ksmd takes calm_cpu_ratio of a core with plenty of memory free, full_cpu_ratio at urgency 1, and begins
              a full scan no more often than each calm_scan_seconds to full_scan_seconds
    how long  barren_scans full scans that brought nothing, then it rests; probe_seconds later (a tenth of that at
              urgency 1) it looks again, and at once when a guest came or went

ksmd scans every process that has memory marked (MADV_MERGEABLE, which QEMU does with a guest's RAM unless told
mem-merge=off) and merges across all of them: groups cannot be kept apart. So a single marked process that is not
such a guest stops it. A stop keeps what is merged, until it is written to. To give that back is run=2, which takes
memory for all of it at once and is the operator's to order, never ours.

The kernel has an advisor (Linux 6.8) that steers pages_to_scan towards a time per full scan. It changes its mind at
the end of a full scan only and begins at a rate that is hours away from where a large host needs it, so that
urgency would come too late; it is used when `advisor` says so.

Somebody else at the knobs, ksmtuned or a person: nothing is touched any more. Two that steer one thing are worse
than either.
"""

import math
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated

import msgspec

from memshare.model import KsmCounters, Mode
from memshare.policy.config import Positive, Ratio
from memshare.policy.pressure import Pressure
from memshare.policy.snapshot import PAGE_BYTES
from memshare.render import human_bytes

SETTLE_SCANS = 2  # a page is merged at the second visit: by then all that is marked is known
PROBE_SCANS = 2  # the first may have begun in the middle
URGENT_PROBE = 0.1  # of probe_seconds, at urgency 1
STILL_RATIO = 0.1  # each knob this near to the one in force is left alone: two knobs make a rate
SLEEP_MS, SLEEP_MS_MAX = 20, 1000
BATCH_PAGES, BATCH_PAGES_MAX = 100, 100_000  # whoever writes `run` waits for the end of a batch
PAGE_NS, PAGE_NS_MIN, PAGE_NS_MAX = 2_000.0, 200.0, 100_000.0
CPU_NS_MIN = 1_000_000  # measured over less, a page's cost is noise


class KsmConfig(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"
):
    """The table [ksm]. Ratios of CPU are of one core, for ksmd is one thread.

    Off unless asked for, because the kernel's KSM has no groups, and guests can tell by timing what others hold.
    Turn it on where all guests belong to one owner and some of them have no plugin, or where the kernel is too
    old for it. Other programs must leave KSM alone then.
    """

    enabled: bool = False
    advisor: bool = False  # where the kernel has one
    full_cpu_ratio: Annotated[float, msgspec.Meta(gt=0, le=0.9)] = 0.5
    calm_cpu_ratio: Ratio = 0.02  # 0: off while memory is plentiful
    full_scan_seconds: Positive = 10.0
    calm_scan_seconds: Positive = 200.0
    barren_scans: Annotated[int, msgspec.Meta(ge=3)] = 4
    barren_ratio: Ratio = 0.001  # of the pages known: fewer merged in a full scan are nothing
    probe_seconds: Positive = 600.0

    def __post_init__(self) -> None:
        """Refuse what each alone may be, but not together."""
        if self.calm_cpu_ratio > self.full_cpu_ratio:
            raise ValueError(
                f"calm-cpu-ratio {self.calm_cpu_ratio} is above full-cpu-ratio {self.full_cpu_ratio}"
            )
        if self.full_scan_seconds > self.calm_scan_seconds:
            raise ValueError(
                f"full-scan-seconds {self.full_scan_seconds} is above "
                f"calm-scan-seconds {self.calm_scan_seconds}"
            )


class KsmPhase(StrEnum):
    """What ksmd is made to do, or why nothing is."""

    OFF = "off"
    SCANNING = "scanning"
    RESTING = "resting"
    HANDED_OVER = "handed-over"


class Marked(msgspec.Struct, frozen=True, kw_only=True):
    """A process that ksmd would scan. domain is empty for one that is no guest of ours.

    group None: it could not be told to which one the guest belongs.
    """

    pid: int
    process: str
    domain: str = ""
    group: str | None = None
    mode: Mode = Mode.CONTENT


class KsmLook(msgspec.Struct, frozen=True, kw_only=True):
    """KSM at one moment. tuner is another program that steers it, empty when there is none."""

    taken_ns: int
    knobs: Mapping[str, str]
    counters: KsmCounters
    ksmd_cpu_ns: int
    default_group: str
    marked: tuple[Marked, ...] = ()
    tuner: str = ""


class KsmState(msgspec.Struct, frozen=True, kw_only=True):
    """What one steering hands to the next.

    written are the knobs that are ours, seen the last look. changed_scans is the count of full scans when guests last
    came or went, judged_* what the last verdict on full scans was made from.
    """

    written: Mapping[str, str] = msgspec.field(default_factory=dict)
    handed_over: str = ""
    seen: KsmLook | None = None
    page_ns: float = PAGE_NS
    guests: frozenset[int] = frozenset()
    has_served: bool = False
    changed_scans: int = 0
    judged_scans: int = 0
    judged_pages: int = 0
    barren: int = 0
    resting_ns: int | None = None


class Steering(msgspec.Struct, frozen=True, kw_only=True):
    """What is wanted of the knobs, and why. Those that are not named stay as they are."""

    phase: KsmPhase
    knobs: Mapping[str, str]
    reason: str
    state: KsmState


def steer(look: KsmLook, before: KsmState, pressure: Pressure, config: KsmConfig) -> Steering:
    """Return the knobs that are wanted now."""
    if why := before.handed_over or _other_tuner(look, before):
        state = msgspec.structs.replace(before, handed_over=why, seen=look)
        return Steering(phase=KsmPhase.HANDED_OVER, knobs={}, reason=why, state=state)
    state = _observe(look, before, config)
    if why := _objection(look):
        return _stop(KsmPhase.OFF, why + _left_merged(look), state)
    if not look.marked:
        return _without_guests(look, state, pressure, config)
    if _cpu_ratio(pressure, config) == 0:
        return _stop(KsmPhase.OFF, f"memory is plentiful ({pressure.cause})", state)
    probe_seconds = config.probe_seconds * (1 - (1 - URGENT_PROBE) * pressure.urgency)
    if state.resting_ns is None and state.barren >= config.barren_scans:
        state = msgspec.structs.replace(state, resting_ns=look.taken_ns)
    if state.resting_ns is not None:
        if look.taken_ns < state.resting_ns + probe_seconds * 1e9:
            why = (
                f"full scans bring nothing any more; one is tried each {probe_seconds:.0f} s "
                f"at urgency {pressure.urgency:.2f}"
            )
            return _stop(KsmPhase.RESTING, why, state)
        barren = config.barren_scans - PROBE_SCANS
        state = msgspec.structs.replace(state, resting_ns=None, barren=barren)
    return _scan(look, state, pressure, config)


def _other_tuner(look: KsmLook, before: KsmState) -> str:
    """Why KSM is somebody else's; empty when it is not."""
    until = "nothing is touched until the daemon is restarted or its configuration changes"
    if look.tuner:
        return f"{look.tuner} steers KSM here: {until}"
    for name, value in sorted(before.written.items()):
        if (now := look.knobs.get(name)) != value:
            return f"somebody else set {name} to {now}, it was {value}: {until}"
    return ""


def _objection(look: KsmLook) -> str:
    """Why ksmd must not scan all that is marked; empty when it may."""
    for marked in look.marked:
        who = marked.domain or f"process {marked.process}"
        if not marked.domain:
            return f"{who} has memory marked for KSM and is no guest that is known here"
        if marked.mode is not Mode.CONTENT:
            return (
                f"{who} is not to share contents (mode {marked.mode}), and KSM makes no exceptions"
            )
        if marked.group != look.default_group:
            group = f"group {marked.group}" if marked.group else "a group that is not known"
            return (
                f"{who} belongs to {group}, not {look.default_group}, and KSM has no groups: "
                "start it with mem-merge=off to have KSM for the others"
            )
    return ""


def _left_merged(look: KsmLook) -> str:
    saved_bytes = look.counters.saved_pages * PAGE_BYTES
    if not saved_bytes:
        return ""
    return (
        f"; what is merged stays so until it is written to: giving back all {human_bytes(saved_bytes)} at "
        "once may be more than the host has"
    )


def _observe(look: KsmLook, before: KsmState, config: KsmConfig) -> KsmState:
    """Judge the full scans since the last verdict; a guest that comes or goes begins a new count."""
    counters, guests = look.counters, frozenset(marked.pid for marked in look.marked)
    state = msgspec.structs.replace(
        before,
        seen=look,
        page_ns=_page_ns(look, before),
        guests=guests,
        has_served=before.has_served or bool(guests),
        judged_scans=counters.full_scans,
        judged_pages=counters.saved_pages,
    )
    if before.seen is None or guests != before.guests:
        return msgspec.structs.replace(
            state, changed_scans=counters.full_scans, barren=0, resting_ns=None
        )
    scans = counters.full_scans - before.judged_scans
    if scans <= 0:
        return msgspec.structs.replace(
            state, judged_scans=before.judged_scans, judged_pages=before.judged_pages
        )
    gained = counters.saved_pages - before.judged_pages
    is_barren = gained <= config.barren_ratio * counters.known_pages
    return msgspec.structs.replace(state, barren=before.barren + scans if is_barren else 0)


def _page_ns(look: KsmLook, before: KsmState) -> float:
    """CPU that a page costs ksmd, half of it as measured since the last look."""
    seen, written = before.seen, before.written
    if seen is None or written.get("run") != "1":
        return before.page_ns
    elapsed_ns = look.taken_ns - seen.taken_ns
    cpu_ns = look.ksmd_cpu_ns - seen.ksmd_cpu_ns
    pages = 0.0
    if look.counters.pages_scanned is not None and seen.counters.pages_scanned is not None:
        pages = look.counters.pages_scanned - seen.counters.pages_scanned
    elif "pages_to_scan" in written:  # before Linux 6.6: what does not work sleeps between batches
        batches = (elapsed_ns - cpu_ns) / (int(written["sleep_millisecs"]) * 1e6)
        pages = batches * int(written["pages_to_scan"])
    if cpu_ns < CPU_NS_MIN or pages <= 0:
        return before.page_ns
    return min(PAGE_NS_MAX, max(PAGE_NS_MIN, (before.page_ns + cpu_ns / pages) / 2))


def _without_guests(
    look: KsmLook, state: KsmState, pressure: Pressure, config: KsmConfig
) -> Steering:
    """Stop, but not before ksmd has let go of what it keeps about the guests that ended.

    That is 64 bytes a page, which the kernel frees in the next full scan only.
    """
    scans = look.counters.full_scans - state.changed_scans
    if state.has_served and look.counters.known_pages and scans < SETTLE_SCANS:
        steering = _scan(look, state, pressure, config)
        why = f"the last guest has ended, and ksmd frees what it kept about it: {steering.reason}"
        return msgspec.structs.replace(steering, reason=why)
    why = "no guest has memory marked for KSM"
    return _stop(KsmPhase.OFF, why, msgspec.structs.replace(state, has_served=False))


def _cpu_ratio(pressure: Pressure, config: KsmConfig) -> float:
    calm = config.calm_cpu_ratio
    return calm + (config.full_cpu_ratio - calm) * pressure.urgency


def _stop(phase: KsmPhase, reason: str, state: KsmState) -> Steering:
    written = {**state.written, "run": "0"}
    return Steering(
        phase=phase,
        knobs={"run": "0"},
        reason=reason,
        state=msgspec.structs.replace(state, written=written),
    )


def _scan(look: KsmLook, state: KsmState, pressure: Pressure, config: KsmConfig) -> Steering:
    cpu_ratio = max(_cpu_ratio(pressure, config), 0.01)
    calm_pace, full_pace = 1 / config.calm_scan_seconds, 1 / config.full_scan_seconds
    pace = calm_pace + (full_pace - calm_pace) * pressure.urgency  # full scans a second
    hurry = f"urgency {pressure.urgency:.2f} ({pressure.cause})"
    if config.advisor and "advisor_mode" in look.knobs:
        knobs = {
            "advisor_mode": "scan-time",
            "advisor_max_cpu": str(max(1, round(100 * cpu_ratio))),
            "advisor_target_scan_time": str(max(1, round(1 / pace))),
            "run": "1",
        }
        why = (
            f"the kernel's advisor aims at a full scan in {1 / pace:.0f} s with at most {cpu_ratio:.0%} of a "
            f"core at {hurry}"
        )
    else:
        rate = cpu_ratio * 1e9 / state.page_ns
        why = f"{rate:.0f} pages/s, {cpu_ratio:.0%} of a core at {hurry}"
        known_pages = look.counters.known_pages
        is_settled = look.counters.full_scans - state.changed_scans >= SETTLE_SCANS
        if is_settled and known_pages * pace < rate:
            rate = known_pages * pace
            why = f"{rate:.0f} pages/s, a full scan in {1 / pace:.0f} s at {hurry}"
        knobs = {**_batches(rate, state.page_ns), "run": "1"}
        if "advisor_mode" in look.knobs:
            knobs["advisor_mode"] = "none"
    if _is_still(knobs, state.written):
        knobs = dict(state.written)
    return Steering(
        phase=KsmPhase.SCANNING,
        knobs=knobs,
        reason=why,
        state=msgspec.structs.replace(state, written=knobs),
    )


def _batches(rate: float, page_ns: float) -> dict[str, str]:
    """Return batches and the rests between them that make a rate of pages a second."""
    work_ratio = min(0.9, rate * page_ns / 1e9)
    pages_ms = rate / 1e3 / (1 - work_ratio)  # a millisecond of rest
    sleep_ms = SLEEP_MS
    if pages_ms * SLEEP_MS < BATCH_PAGES:
        sleep_ms = min(SLEEP_MS_MAX, math.ceil(BATCH_PAGES / max(pages_ms, 1e-6)))
    pages = min(BATCH_PAGES_MAX, max(1, math.ceil(pages_ms * sleep_ms)))
    return {"pages_to_scan": str(pages), "sleep_millisecs": str(sleep_ms)}


def _is_still(wanted: Mapping[str, str], written: Mapping[str, str]) -> bool:
    """Whether the knobs in force are as good as those that are wanted."""
    if wanted.keys() != written.keys():
        return False
    for name, value in wanted.items():
        if value == written[name]:
            continue
        if name in ("run", "advisor_mode"):
            return False
        now = int(written[name])
        if abs(int(value) - now) > STILL_RATIO * now:
            return False
    return True

# SPDX-License-Identifier: GPL-2.0-or-later
"""What one run comes to, by what it wrote down. Pure.

What was freed, and what could have been, is taken from oracles (page tables) and never from an engine's own count; only the
split into zero and content is the engine's. A figure that cannot be had is None, never 0.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from memshare.experiment.plan import BOOT, EngineKind, Load, Plan
from memshare.experiment.record import GuestReading, OracleReading, Record, Sample, Step
from memshare.experiment.recording import Run
from memshare.render import Unit

MOST = 0.90  # of the oracle: from here on an engine has converged
NEARLY_ALL = 0.95
GIB = 1 << 30
TAIL_OPERATIONS = 100  # a quantile is told when at least so many operations lie above it


class Figure(NamedTuple):
    """A key of RunFigures, what people call it, how it is shown, and what it means."""

    key: str
    name: str
    unit: Unit
    meaning: str


FIGURES = (
    Figure("ram_given_bytes", "guest RAM", Unit.BYTES, "RAM of all guests, at the end"),
    Figure(
        "used_bytes",
        "memory used",
        Unit.BYTES,
        "at the end, by QEMU, broker, daemon and the kernel for them; without clean page cache",
    ),
    Figure("overcommit_ratio", "overcommit", Unit.TIMES, "guest RAM over memory used, at the end"),
    Figure("overcommit_peak", "peak", Unit.TIMES, "the highest once all guests were up"),
    Figure(
        "overcommit_floor",
        "floor",
        Unit.TIMES,
        f"the least under load, once {MOST:.0%} of the oracle had been reached",
    ),
    Figure(
        "saved_zero_bytes",
        "saved: zero",
        Unit.BYTES,
        "by pages of zeros, at the end, by the engine's own count; KSM without use_zero_pages counts zeros among contents",
    ),
    Figure(
        "saved_content_bytes",
        "saved: content",
        Unit.BYTES,
        "by equal pages that are not zero, at the end, by the engine's own count",
    ),
    Figure(
        "freed_bytes", "freed", Unit.BYTES, "page frames that sharing freed, by the page tables"
    ),
    Figure(
        "oracle_fraction",
        "of the oracle",
        Unit.RATIO,
        "freed, of the most that exact sharing could free at that moment; at the end",
    ),
    Figure(
        "oracle_floor",
        "oracle floor",
        Unit.RATIO,
        f"the least under load, once {MOST:.0%} had been reached",
    ),
    Figure(
        "seconds_to_most",
        f"until {MOST:.0%}",
        Unit.SECONDS,
        "from the last boot, or when sharing began after that, to the first oracle of which so much was freed",
    ),
    Figure("seconds_to_nearly_all", f"until {NEARLY_ALL:.0%}", Unit.SECONDS, "the same"),
    Figure(
        "cpu_seconds_to_most",
        f"CPU until {MOST:.0%}",
        Unit.SECONDS,
        "all CPU time of scanning from the start to that moment",
    ),
    Figure("cpu_seconds", "CPU in all", Unit.SECONDS, "CPU time of scanning, at the end"),
    Figure(
        "cpu_seconds_per_gib",
        "CPU per GiB",
        Unit.SECONDS,
        "CPU time of scanning until the last oracle, for each GiB that was freed then",
    ),
    Figure(
        "steady_cpu_ratio",
        f"CPU after {MOST:.0%}",
        Unit.RATIO,
        "of one core, on average from that moment to the end",
    ),
    Figure("ladder_guests", "guests in the budget", Unit.COUNT, "the most that a ladder came to"),
    Figure(
        "longest_stall_us",
        "longest stall",
        Unit.MICROSECONDS,
        "the longest that a thread of a guest did not run, by the guest's clock, which stands still during an oracle",
    ),
)


class RunFigures(Record, frozen=True, kw_only=True):
    """The figures of one run. FIGURES says what each means."""

    engine: EngineKind
    repeat: int
    ended: str
    integrity: str
    guests: int
    ram_given_bytes: int
    used_bytes: int
    overcommit_ratio: float | None
    overcommit_peak: float | None
    overcommit_floor: float | None
    saved_zero_bytes: int | None
    saved_content_bytes: int | None
    freed_bytes: int | None
    oracle_fraction: float | None
    oracle_floor: float | None
    seconds_to_most: float | None
    seconds_to_nearly_all: float | None
    cpu_seconds_to_most: float | None
    cpu_seconds: float | None
    cpu_seconds_per_gib: float | None
    steady_cpu_ratio: float | None
    ladder_guests: int | None
    longest_stall_us: int | None


class Noticed(Record, frozen=True, kw_only=True):
    """What guests of one engine had of a load in a phase: all its repeats, or one run.

    rates: operations a second of each guest, keyed "repeat/guest"; over all its readings together, for a load that works and
    rests in turn is in each of them more of one than of the other. Latencies are upper bounds of the histogram's buckets; one
    with too few operations above it is None, and missing_tail says so of p99.9.
    """

    phase: str
    load: str
    operations: int
    rates: dict[str, float]
    p50_us: int | None
    p99_us: int | None
    p999_us: int | None
    missing_tail: str
    longest_stall_us: int | None

    @property
    def rate(self) -> float | None:
        """The median over guests."""
        return statistics.median(self.rates.values()) if self.rates else None


def ratio(sample: Sample | Step) -> float | None:
    """Overcommit ratio."""
    return sample.ram_given_bytes / sample.used_bytes if sample.used_bytes > 0 else None


def fraction(oracle: OracleReading) -> float | None:
    """What was freed of what could be; None when nothing could."""
    return oracle.freed_bytes / oracle.oracle_bytes if oracle.oracle_bytes > 0 else None


def first_at(oracles: Iterable[OracleReading], since: float, wanted: float) -> float | None:
    """When at least that fraction was first seen, not before since."""
    for oracle in oracles:
        part = fraction(oracle)
        if oracle.seconds >= since and part is not None and part >= wanted:
            return oracle.seconds
    return None


def cpu_at(samples: Sequence[Sample], seconds: float) -> float:
    """CPU time until then: that of the first sample not before, so on the large side; else of the last one."""
    for sample in samples:
        if sample.seconds >= seconds:
            return sample.scan_cpu_seconds
    return samples[-1].scan_cpu_seconds


def begun(plan: Plan, run: Run) -> float:
    """From when on an engine can converge: the last guest is up, and sharing has begun."""
    phases, booted = run.result.phases, run.result.last_boot_seconds
    return max(booted, phases[plan.start_phase][0]) if plan.start_phase in phases else booted


def load_phases(plan: Plan) -> set[str]:
    """Names of the phases in which some guest is not idle."""
    return {
        phase.name for phase in plan.phase if any(load is not Load.IDLE for load in phase.loads)
    }


def most_guests(steps: Sequence[Step], budget_bytes: int | None) -> Step | None:
    """The last rung before the first that is above the budget."""
    best = None
    for step in steps:
        if budget_bytes is not None and step.used_bytes > budget_bytes:
            break
        best = step
    return best


def settled(run: Run) -> list[GuestReading]:
    """The readings of a time within one phase; not of booting.

    Those in which an oracle stopped the guests count as well: a guest's clock stands still with it.
    """

    def is_within(reading: GuestReading) -> bool:
        start = reading.seconds - reading.interval_seconds
        began, _ = run.result.phases.get(reading.phase, (start, start))
        return reading.phase != BOOT and start >= began

    return [reading for reading in run.readings if is_within(reading)]


def figures(plan: Plan, run: Run) -> RunFigures:
    """Put the figures of a run together. A ladder ends with its last rung within the budget."""
    result = run.result
    rung = most_guests(result.steps, plan.budget_bytes)
    until = rung.seconds if rung else run.samples[-1].seconds
    samples = [sample for sample in run.samples if sample.seconds <= until] or run.samples[:1]
    oracles = [oracle for oracle in run.oracles if oracle.seconds <= until]
    last = samples[-1]
    start = begun(plan, run)
    # Sharing off has nothing to reach: its floor counts from the last boot.
    if result.engine is EngineKind.OFF:
        converged: float | None = result.last_boot_seconds
    else:
        converged = first_at(oracles, start, MOST)
    # A ladder never stops booting: times from the last boot mean nothing there.
    most = None
    nearly_all = None
    if plan.ladder is None and result.engine is not EngineKind.OFF:
        most = converged
        nearly_all = first_at(oracles, start, NEARLY_ALL)

    all_up = [ratio(sample) for sample in samples if sample.seconds >= result.last_boot_seconds]
    if result.steps:
        all_up = [ratio(step) for step in result.steps]
    loaded = load_phases(plan)
    steady = [
        ratio(sample)
        for sample in samples
        if converged is not None and sample.seconds >= converged and sample.phase in loaded
    ]
    steady_fractions = [
        fraction(oracle)
        for oracle in oracles
        if most is not None and oracle.seconds >= most and oracle.phase in loaded
    ]
    end = rung or last
    counted = [oracle for oracle in oracles if fraction(oracle) is not None]
    final = counted[-1] if counted else None
    is_sharing = result.engine is not EngineKind.OFF
    stalls = [reading.longest_stall_us for reading in settled(run)]
    return RunFigures(
        engine=result.engine,
        repeat=result.repeat,
        ended=result.ended,
        integrity=integrity(run),
        guests=rung.guests if rung else last.guests_up,
        ram_given_bytes=end.ram_given_bytes,
        used_bytes=end.used_bytes,
        overcommit_ratio=None if plan.ladder and rung is None else ratio(end),
        overcommit_peak=most_of(all_up),
        overcommit_floor=least_of(steady),
        saved_zero_bytes=last.saved_zero_bytes,
        saved_content_bytes=last.saved_content_bytes,
        freed_bytes=final.freed_bytes if final else None,
        oracle_fraction=fraction(final) if final else None,
        oracle_floor=least_of(steady_fractions),
        seconds_to_most=None if most is None else most - start,
        seconds_to_nearly_all=None if nearly_all is None else nearly_all - start,
        cpu_seconds_to_most=None if most is None else cpu_at(samples, most),
        cpu_seconds=last.scan_cpu_seconds if is_sharing else None,
        cpu_seconds_per_gib=cpu_at(samples, final.seconds) / (final.freed_bytes / GIB)
        if is_sharing and final is not None and final.freed_bytes > 0
        else None,
        steady_cpu_ratio=None
        if most is None or last.seconds <= most
        else (last.scan_cpu_seconds - cpu_at(samples, most)) / (last.seconds - most),
        ladder_guests=(rung.guests if rung else 0) if plan.ladder else None,
        longest_stall_us=max((stall for stall in stalls if stall is not None), default=None),
    )


def least_of(values: Iterable[float | None]) -> float | None:
    """The least of those that there are."""
    return min((value for value in values if value is not None), default=None)


def most_of(values: Iterable[float | None]) -> float | None:
    """The greatest of those that there are."""
    return max((value for value in values if value is not None), default=None)


def integrity(run: Run) -> str:
    """Return "ok", or the first that was wrong: by the runner, else by a guest."""
    if run.result.integrity != "ok":
        return run.result.integrity
    for reading in run.readings:
        if reading.integrity != "ok":
            return f"{reading.guest}: {reading.integrity}"
    return "ok"


def merge(histograms: Iterable[Mapping[str, int]]) -> dict[int, int]:
    """Add histograms; upper bound in us -> operations, in order."""
    total: dict[int, int] = {}
    for histogram in histograms:
        for bound, count in histogram.items():
            total[int(bound)] = total.get(int(bound), 0) + count
    return dict(sorted(total.items()))


def needed(quantile: float) -> int:
    """How many operations a quantile needs."""
    return round(TAIL_OPERATIONS / (1 - quantile))


def quantile_us(histogram: Mapping[int, int], quantile: float) -> int | None:
    """The bound of the bucket in which a merged histogram's quantile lies; None when too few operations are known."""
    total = sum(histogram.values())
    if total < needed(quantile):
        return None
    seen = 0
    for bound, count in histogram.items():
        seen += count
        if seen >= quantile * total:
            return bound
    return None


def noticed(runs: Sequence[Run]) -> list[Noticed]:
    """What the guests of these runs had, for each phase and load that reported something."""
    told = [(run.result.repeat, reading) for run in runs for reading in settled(run)]
    keys = dict.fromkeys((reading.phase, reading.load) for _, reading in told)
    return [
        _noticed(
            phase,
            load,
            [
                (repeat, reading)
                for repeat, reading in told
                if (reading.phase, reading.load) == (phase, load)
            ],
        )
        for phase, load in keys
    ]


def _noticed(phase: str, load: str, readings: Sequence[tuple[int, GuestReading]]) -> Noticed:
    by_guest: dict[str, list[GuestReading]] = {}
    for repeat, reading in readings:
        if reading.interval_seconds > 0:
            by_guest.setdefault(f"{repeat:02d}/{reading.guest}", []).append(reading)
    operations = sum(reading.operations for _, reading in readings)
    histogram = merge(reading.latency_us for _, reading in readings)
    known = sum(histogram.values())
    stalls = [reading.longest_stall_us for _, reading in readings]
    return Noticed(
        phase=phase,
        load=load,
        operations=operations,
        # A load that counts no operations has no rate; one that came to a halt in some reading has.
        rates={
            guest: sum(one.operations for one in seen) / sum(one.interval_seconds for one in seen)
            for guest, seen in by_guest.items()
        }
        if operations
        else {},
        p50_us=quantile_us(histogram, 0.5),
        p99_us=quantile_us(histogram, 0.99),
        p999_us=quantile_us(histogram, 0.999),
        missing_tail=""
        if known >= needed(0.999)
        else f"{known} operations, fewer than {needed(0.999)}",
        longest_stall_us=max((stall for stall in stalls if stall is not None), default=None),
    )


def relative(one: Noticed, before: Noticed) -> dict[str, float]:
    """Rates of guests as parts of what they did before; of those that did something then."""
    return {
        guest: rate / before.rates[guest]
        for guest, rate in one.rates.items()
        if before.rates.get(guest, 0) > 0
    }


def slowdowns(off: Mapping[str, float], other: Mapping[str, float]) -> list[float]:
    """By how much each guest was slower than the guest of that name in the same repeat with sharing off.

    0.07: it did 7% less. Guests without a partner, or whose partner did nothing, are left out.
    """
    return [1 - rate / off[guest] for guest, rate in other.items() if off.get(guest, 0) > 0]


def value_of(figures: RunFigures, key: str) -> float | int | None:
    """A figure by its key in FIGURES."""
    value: float | int | None = msgspec.structs.asdict(figures)[key]
    return value

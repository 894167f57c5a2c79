# SPDX-License-Identifier: GPL-2.0-or-later
"""What runs come to: cases reckoned by hand, and what holds whatever was recorded."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memshare.experiment import figures as f
from memshare.experiment import plan, report, statistics
from memshare.experiment.plan import EngineKind
from memshare.experiment.record import GuestReading, OracleReading, RunResult, Sample, Step
from memshare.experiment.recording import Run

GIB = 1 << 30
PHASES = [
    {"name": "settle", "seconds": 30.0},
    {"name": "load", "seconds": 30.0, "loads": ["idle", "web"]},
]


def a_plan(**changes: Any) -> plan.Plan:
    data = {"name": "p", "guests": {"count": 2}, "engines": ["off", "memshare"], "phase": PHASES}
    return plan.decode({**data, **changes}, "here")


def a_sample(seconds: float, used: int, phase: str = "settle", cpu: float = 0.0) -> Sample:
    return Sample(
        seconds=seconds, phase=phase, guests_up=2, ram_given_bytes=4 * GIB, cgroup_bytes=used,
        cgroup_kernel_bytes=0, cgroup_cache_bytes=0, used_bytes=used, host_used_bytes=0, pss_bytes=0,
        saved_zero_bytes=int(seconds), saved_content_bytes=int(seconds) * 2, scan_cpu_seconds=cpu,
        scanned_pages=None, breaks=None, psi_some_seconds=None, psi_full_seconds=None,
    )  # fmt: skip


def an_oracle(seconds: float, freed: int, most: int = 100, phase: str = "settle") -> OracleReading:
    return OracleReading(
        seconds=seconds, phase=phase, held_bytes=1000, held_zero_bytes=0, frames_bytes=0,
        freed_bytes=freed, oracle_bytes=most, stopped_seconds=0.1,
    )  # fmt: skip


def a_reading(seconds: float = 50, **changes: Any) -> GuestReading:
    data = {
        "seconds": seconds, "guest": "g0", "phase": "load", "load": "web", "interval_seconds": 1.0,
        "operations": 100, "latency_us": {"100": 99, "200": 1}, "longest_stall_us": 5, "integrity": "ok",
    }  # fmt: skip
    return GuestReading(**{**data, **changes})


def a_run(
    samples: Sequence[Sample],
    oracles: Sequence[OracleReading] = (),
    readings: Sequence[GuestReading] = (),
    **changes: Any,
) -> Run:
    data = {
        "repeat": 0, "engine": EngineKind.MEMSHARE, "started_utc": "", "wall_seconds": 1.0,
        "last_boot_seconds": 20.0, "phases": {}, "integrity": "ok", "ended": "finished",
    }  # fmt: skip
    return Run(
        result=RunResult(**{**data, **changes}),
        samples=list(samples),
        oracles=list(oracles),
        readings=list(readings),
    )


SAMPLES = [
    a_sample(10, GIB // 2, "boot", cpu=1.0),  # a ratio of 8, before all were up
    a_sample(20, 2 * GIB, cpu=2.0),
    a_sample(30, 1 * GIB, cpu=3.0),
    a_sample(40, 4 * GIB, "load", cpu=4.0),  # under load, but before 90%
    a_sample(50, 2 * GIB, "load", cpu=5.0),
    a_sample(60, 8 * GIB // 6, "load", cpu=7.0),
]
ORACLES = [
    an_oracle(15, 95),  # before the last boot: does not count
    an_oracle(25, 50),
    an_oracle(44, 90, phase="load"),
    an_oracle(52, 60, phase="load"),
    an_oracle(58, 3 * GIB // 2, most=3 * GIB // 2, phase="load"),
]


def test_figures_by_hand() -> None:
    found = f.figures(a_plan(), a_run(SAMPLES, ORACLES))
    assert (found.guests, found.ram_given_bytes, found.used_bytes) == (2, 4 * GIB, 8 * GIB // 6)
    assert found.overcommit_ratio == pytest.approx(3)
    assert (found.overcommit_peak, found.overcommit_floor) == (4.0, 2.0)
    assert (found.saved_zero_bytes, found.saved_content_bytes) == (60, 120)
    assert (found.oracle_fraction, found.oracle_floor) == (1.0, 0.6)
    assert (found.seconds_to_most, found.seconds_to_nearly_all) == (24.0, 38.0)
    # The first sample not before second 44 is that of second 50, and not before 58 that of 60.
    assert found.cpu_seconds_to_most == 5.0
    assert found.cpu_seconds_per_gib == pytest.approx(7.0 / 1.5)
    assert found.steady_cpu_ratio == (7.0 - 5.0) / (60 - 44)
    assert found.ladder_guests is None


def test_what_cannot_be_had_is_none() -> None:
    never = f.figures(a_plan(), a_run(SAMPLES, ORACLES[:2]))
    assert never.oracle_fraction == 0.5
    assert never.seconds_to_most is never.seconds_to_nearly_all is None
    assert never.cpu_seconds_to_most is never.steady_cpu_ratio is None
    assert never.overcommit_floor is never.oracle_floor is None
    nothing = f.figures(a_plan(), a_run([a_sample(30, 0)], [an_oracle(30, 0, most=0)]))
    assert nothing.overcommit_ratio is nothing.overcommit_peak is nothing.oracle_fraction is None
    assert nothing.freed_bytes is nothing.cpu_seconds_per_gib is nothing.longest_stall_us is None


def test_sharing_off_has_a_floor_from_the_last_boot_and_no_cost() -> None:
    found = f.figures(a_plan(), a_run(SAMPLES, ORACLES, engine=EngineKind.OFF))
    assert found.overcommit_floor == 1.0
    assert found.seconds_to_most is found.cpu_seconds is found.cpu_seconds_per_gib is None


def a_step(guests: int, used: int) -> Step:
    return Step(
        guests=guests, seconds=10.0 * guests, ram_given_bytes=guests * GIB, used_bytes=used,
        touched_fraction=0.9,
    )  # fmt: skip


def test_a_ladder_ends_with_its_last_rung_within_the_budget() -> None:
    steps = (a_step(1, GIB // 2), a_step(2, GIB), a_step(3, 3 * GIB), a_step(4, GIB))
    ladder = a_plan(phase=[], ladder={}, budget="2G")
    found = f.figures(ladder, a_run(SAMPLES, ORACLES, steps=steps))
    assert (found.ladder_guests, found.guests, found.overcommit_ratio) == (2, 2, 2.0)
    assert (found.saved_zero_bytes, found.cpu_seconds, found.oracle_fraction) == (20, 2.0, 0.95)
    assert found.seconds_to_most is None
    none = f.figures(ladder, a_run(SAMPLES, ORACLES, steps=steps[2:]))
    assert (none.ladder_guests, none.overcommit_ratio) == (0, None)


def test_integrity_is_the_first_that_was_wrong() -> None:
    good, bad = a_reading(), a_reading(integrity="file 7 differs")
    assert f.integrity(a_run(SAMPLES, readings=[good])) == "ok"
    assert f.integrity(a_run(SAMPLES, readings=[good, bad])) == "g0: file 7 differs"
    assert f.integrity(a_run(SAMPLES, readings=[bad], integrity="g1 died")) == "g1 died"


def test_guests_figures_by_hand() -> None:
    readings = [
        a_reading(41, operations=100),
        a_reading(42, operations=300, longest_stall_us=70),
        a_reading(43, operations=500, interval_seconds=2.0),
        a_reading(43, guest="g1", operations=50, longest_stall_us=None),
        a_reading(44, load="idle", operations=0, latency_us={}, longest_stall_us=9),
    ]
    web, idle = f.noticed([a_run(SAMPLES, readings=readings)])
    assert (web.phase, web.load, web.operations) == ("load", "web", 950)
    assert web.rates == {"00/g0": 225.0, "00/g1": 50.0}
    assert (web.rate, web.longest_stall_us) == (137.5, 70)
    assert (web.p50_us, web.p99_us, web.p999_us) == (100, None, None)
    assert web.missing_tail == "400 operations, fewer than 100000"
    assert (idle.rates, idle.rate, idle.p50_us, idle.longest_stall_us) == ({}, None, None, 9)


def test_the_rate_of_a_load_that_works_and_rests_is_of_all_its_time() -> None:
    for late in range(3):  # when it is asked is chance
        asked = [900 if number % 3 == late else 0 for number in range(12)]
        readings = [
            a_reading(40 + 2 * number, operations=operations, interval_seconds=2.0, load="allocate")
            for number, operations in enumerate(asked)
        ]
        (found,) = f.noticed([a_run(SAMPLES, readings=readings)])
        assert found.rates == {"00/g0": 150.0}


def test_a_tail_is_told_from_a_hundred_thousand_operations_on() -> None:
    almost = {"100": 99_800, "200": 100, "300": 99}
    (one,) = f.noticed([a_run(SAMPLES, readings=[a_reading(latency_us=almost)])])
    assert (one.p99_us, one.p999_us) == (100, None)
    more = [a_reading(41, latency_us=almost), a_reading(42, guest="g1", latency_us={"400": 1})]
    (one,) = f.noticed([a_run(SAMPLES, readings=more)])
    assert (one.p999_us, one.missing_tail) == (200, "")


def test_readings_of_booting_and_of_two_phases_do_not_count() -> None:
    readings = [a_reading(41, longest_stall_us=9), a_reading(42), a_reading(50, phase="boot")]
    run = a_run(SAMPLES, readings=readings, phases={"load": (40.5, 60.0)})
    assert [reading.seconds for reading in f.settled(run)] == [42]
    assert f.figures(a_plan(), run).longest_stall_us == 5


def test_slowdown_is_of_the_same_guest_in_the_same_repeat() -> None:
    off = {"a": 100.0, "b": 50.0, "c": 0.0, "d": 10.0}
    other = {"a": 93.0, "b": 55.0, "c": 5.0, "e": 1.0}
    assert f.slowdowns(off, other) == pytest.approx([0.07, -0.1])


def test_times_count_from_when_sharing_began() -> None:
    phases = {"settle": (20.0, 30.0), "load": (30.0, 60.0)}
    run = a_run(SAMPLES, ORACLES, phases=phases)
    assert f.figures(a_plan(), run).seconds_to_most == 24.0
    late = f.figures(a_plan(**{"start-phase": "load"}), run)
    assert (late.seconds_to_most, late.seconds_to_nearly_all) == (14.0, 28.0)


def with_rates(before: Sequence[float], after: Sequence[float]) -> Run:
    """A run of two guests that do so much a second in two phases."""
    return a_run(
        SAMPLES,
        readings=[
            a_reading(at, phase=phase, guest=f"g{number}", operations=rate)
            for at, phase, rates in ((30, "settle", before), (50, "load", after))
            for number, rate in enumerate(rates)
        ],
    )


def test_a_guest_is_held_against_itself_before_sharing_began() -> None:
    # g1 of this boot is half as fast as that with sharing off, before anything is shared.
    off, ours = with_rates([100, 100], [110, 100]), with_rates([100, 50], [99, 45])
    phases = [{**phase, "loads": ["web"]} for phase in PHASES]
    seen, base = report.by_phase([ours]), report.by_phase([off])
    for start, expected in (("load", [0.1, 0.1]), ("", [0.1, 0.55]), ("settle", [0.1, 0.55])):
        steps = a_plan(phase=phases, **{"start-phase": start})
        found = report.view(steps, seen["load", "web"], seen, base).slowdown
        assert found is not None
        assert [found.least, found.greatest] == pytest.approx(expected)
        early = report.view(steps, seen["settle", "web"], seen, base).slowdown
        assert early is not None and [early.least, early.greatest] == [0.0, 0.5]
    assert report.view(steps, base["load", "web"], base, {}).slowdown is None


moments = st.lists(
    st.tuples(st.integers(0, 100), st.integers(0, 200), st.integers(0, 100)), max_size=30
).map(lambda found: [an_oracle(at, freed, most) for at, freed, most in sorted(found)])


@given(moments, st.integers(0, 100), st.floats(0.01, 1), st.floats(0.01, 1))
def test_first_at_is_the_first_and_later_for_more(
    oracles: list[OracleReading], since: int, one: float, other: float
) -> None:
    less, more = sorted((one, other))
    at_less, at_more = f.first_at(oracles, since, less), f.first_at(oracles, since, more)
    if at_more is not None:
        assert at_less is not None and since <= at_less <= at_more
    if at_less is not None:
        assert not any(
            oracle.oracle_bytes and oracle.freed_bytes / oracle.oracle_bytes >= less
            for oracle in oracles
            if since <= oracle.seconds < at_less
        )


@given(
    st.lists(st.tuples(st.integers(0, 90), st.integers(1, 1 << 40)), min_size=1, max_size=30),
    moments,
)
def test_floor_and_end_are_never_above_the_peak(
    used: list[tuple[int, int]], oracles: list[OracleReading]
) -> None:
    samples = [a_sample(at, size, "load", cpu=float(at)) for at, size in sorted(used)]
    found = f.figures(a_plan(), a_run(samples, oracles))
    assert found.overcommit_ratio == 4 * GIB / samples[-1].used_bytes
    if found.overcommit_peak is not None:
        assert found.overcommit_ratio <= found.overcommit_peak
    if found.overcommit_floor is not None:
        assert found.overcommit_peak is not None
        assert found.overcommit_floor <= found.overcommit_ratio <= found.overcommit_peak
    if found.seconds_to_most is not None and found.seconds_to_nearly_all is not None:
        assert 0 <= found.seconds_to_most <= found.seconds_to_nearly_all


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=2000),
    st.sampled_from([0.5, 0.9, 0.99]),
    st.integers(0, 2000),
)
def test_quantiles_are_those_of_the_sorted_values(
    values: list[int], quantile: float, cut: int
) -> None:
    def histogram(part: list[int]) -> dict[str, int]:
        return {str(value): part.count(value) for value in set(part)}

    merged = f.merge([histogram(values[:cut]), histogram(values[cut:])])
    assert merged == f.merge([histogram(values)])
    found = f.quantile_us(merged, quantile)
    if len(values) < f.needed(quantile):
        assert found is None
    else:
        assert found == sorted(values)[max(0, math.ceil(quantile * len(values)) - 1)]


@given(st.lists(st.integers(1, 10), max_size=10), st.integers(1, 10))
def test_every_rung_up_to_the_last_is_within_the_budget(used: list[int], budget: int) -> None:
    steps = [a_step(number, size) for number, size in enumerate(used, 1)]
    best = f.most_guests(steps, budget)
    count = best.guests if best else 0
    assert all(size <= budget for size in used[:count])
    assert used[count : count + 1] == [] or used[count] > budget


def test_statistics_of_few_values_have_no_interval() -> None:
    assert statistics.summarise([]) is None
    few = statistics.summarise([3.0, 1.0, 2.0, 4.0, 9.0])
    assert few is not None
    assert (few.count, few.median, few.least, few.greatest, few.low, few.high) == (
        5, 3.0, 1.0, 9.0, None, None,
    )  # fmt: skip


def test_an_interval_holds_the_median_and_stays_the_same() -> None:
    values = [10.0, 11.0, 12.0, 13.0, 14.0, 15.0, 16.0, 40.0]
    found = statistics.summarise(values)
    assert found is not None and found.low is not None and found.high is not None
    assert 10.0 <= found.low < found.median == 13.5 < found.high <= 40.0
    assert found == statistics.summarise(values)
    same = statistics.summarise([7.0] * 6)
    assert same is not None and (same.low, same.high) == (7.0, 7.0)


def test_differences() -> None:
    assert statistics.difference([], [1.0]) is None
    single = statistics.difference([1.0], [3.0])
    assert single is not None and (single.median, single.p) == (2.0, None)
    # Of the 20 ways to deal six values to two sides, this one and its mirror are this far apart.
    three = statistics.difference([1.0, 2.0, 3.0], [11.0, 12.0, 13.0])
    assert three is not None
    assert (three.median, three.low, three.p) == (10.0, None, pytest.approx(0.1))
    alike = statistics.difference([5.0, 5.0], [5.0, 5.0])
    assert alike is not None and alike.p == 1.0
    many = statistics.difference(
        [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [21.0, 22.0, 23.0, 24.0, 25.0, 26.0]
    )
    assert many is not None and many.low is not None and many.high is not None
    assert many.low <= many.median == 20.0 <= many.high
    assert many.p == pytest.approx(2 / 924)

# SPDX-License-Identifier: GPL-2.0-or-later
"""The demo's figures and verdicts, on made-up recordings; and what sharing costs."""

from typing import Any

import msgspec
import pytest

from memshare.bench.cost import KERNEL_STACK_BYTES, Cost, memory_used_bytes, overhead_bytes
from memshare.bench.demo import PHASE, PLAN, Result, converged, lines, make_result, misses
from memshare.bench.oracle import PAGE_BYTES, Store
from memshare.errors import MeasurementError
from memshare.experiment import plan
from memshare.experiment.plan import EngineKind
from memshare.experiment.record import GuestReading, OracleReading, RunResult, Sample
from memshare.experiment.recording import Run

ISSUE_KEYS = [
    "guests",
    "ram_given_bytes",
    "memory_used_before_bytes",
    "memory_used_bytes",
    "frames_freed_bytes",
    "oracle_bytes",
    "saved_zero_bytes",
    "saved_content_bytes",
    "overhead_bytes",
    "overcommit_ratio_off",
    "overcommit_ratio",
    "scan_cpu_seconds",
    "integrity",
]
HELD = 800 << 20
FREED = 400 << 20
OVERHEAD = 5 << 20
GIVEN = 1 << 30


def cost(ram_pages: int, **changes: int) -> Cost:
    plain = Cost(
        ram_pss_bytes=ram_pages * PAGE_BYTES,
        views_pss_bytes=0,
        guest_heap_bytes=1000,
        guest_tables_bytes=1000,
        slab_bytes=1000,
        broker_bytes=0,
    )
    return plain._replace(**changes)


def a_sample(seconds: float, cpu: float) -> Sample:
    return Sample(
        seconds=seconds, phase=PHASE, guests_up=4, ram_given_bytes=GIVEN, cgroup_bytes=1,
        cgroup_kernel_bytes=0, cgroup_cache_bytes=0, used_bytes=1, host_used_bytes=0, pss_bytes=0,
        saved_zero_bytes=None, saved_content_bytes=None, scan_cpu_seconds=cpu,
        scanned_pages=None, breaks=None, psi_some_seconds=None, psi_full_seconds=None,
    )  # fmt: skip


def an_oracle(seconds: float, freed: int, phase: str = PHASE, **changes: Any) -> OracleReading:
    data = {
        "seconds": seconds, "phase": phase, "held_bytes": HELD, "held_zero_bytes": 0,
        "frames_bytes": HELD - freed, "freed_bytes": freed, "oracle_bytes": 420 << 20, "stopped_seconds": 0.1,
    }  # fmt: skip
    return OracleReading(**{**data, **changes})


def a_run(engine: EngineKind, oracles: list[OracleReading], integrity: str = "ok") -> Run:
    reading = GuestReading(
        seconds=40.0, guest="guest1", phase=PHASE, load="idle", interval_seconds=1.0, operations=1,
        latency_us={}, longest_stall_us=None, integrity=integrity,
    )  # fmt: skip
    return Run(
        result=RunResult(
            repeat=0, engine=engine, started_utc="", wall_seconds=1, last_boot_seconds=1,
            phases={PHASE: (1.0, 50.0)}, integrity="ok", ended="finished",
        ),
        samples=[a_sample(10, 0.5), a_sample(50, 2.25), a_sample(90, 7.0)],
        readings=[reading],
        oracles=oracles,
    )  # fmt: skip


def off(**changes: Any) -> Run:
    return a_run(EngineKind.OFF, [an_oracle(50, 0)], **changes)


def shared(claimed: int = FREED, integrity: str = "ok", **changes: Any) -> Run:
    """An oracle on the way, the one that counts, and one of another phase."""
    data = {
        "saved_zero_bytes": claimed // 4, "saved_content_bytes": claimed - claimed // 4,
        "pss_bytes": HELD - FREED, "overhead_bytes": OVERHEAD,
    }  # fmt: skip
    return a_run(
        EngineKind.MEMSHARE,
        [an_oracle(20, 7), an_oracle(50, FREED, **{**data, **changes}), an_oracle(90, 9, "work")],
        integrity,
    )


def result(**changes: object) -> Result:
    return msgspec.structs.replace(make_result(off(), shared()), **changes)


def test_the_plan_has_what_the_demo_asks_for() -> None:
    quick = plan.load(plan.find(PLAN))
    assert {EngineKind.OFF, EngineKind.MEMSHARE} <= set(quick.engines)
    assert quick.start_phase == PHASE and quick.repeats == 1


def test_result_has_exactly_the_keys_asked_for() -> None:
    assert list(Result.__struct_fields__) == ISSUE_KEYS


def test_result_adds_up() -> None:
    made = result()
    assert (made.guests, made.ram_given_bytes) == (4, GIVEN)
    assert made.memory_used_before_bytes == HELD
    assert made.frames_freed_bytes == FREED
    assert made.memory_used_bytes == HELD - FREED + OVERHEAD
    assert made.saved_zero_bytes + made.saved_content_bytes == FREED
    assert made.overcommit_ratio_off == 1.28
    assert made.overcommit_ratio == pytest.approx(GIVEN / (HELD - FREED + OVERHEAD), 1e-3)
    assert made.scan_cpu_seconds == 2.25
    assert misses(made) == []
    assert "95.2% of what" in "".join(lines(made))


def test_each_miss_is_named() -> None:
    assert "guest1" in misses(result(integrity="guest1 lost a byte"))[0]
    assert "freed 79.5%" in misses(result(frames_freed_bytes=795, oracle_bytes=1000))[0]


@pytest.mark.parametrize("is_off", [False, True])
def test_wrong_bytes_in_either_run_are_told(is_off: bool) -> None:
    wrong = {"integrity": "wrong bytes"}
    made = make_result(off(**wrong), shared()) if is_off else make_result(off(), shared(**wrong))
    assert made.integrity == "guest1: wrong bytes"


@pytest.mark.parametrize(("claimed", "misses_bar"), [(1.019, False), (1.021, True), (0.979, True)])
def test_I10_claims_that_differ_from_page_tables_fail(claimed: float, misses_bar: bool) -> None:
    assert bool(misses(make_result(off(), shared(int(FREED * claimed))))) is misses_bar


def test_I10_pss_that_differs_from_page_frames_is_noticed() -> None:
    with pytest.raises(MeasurementError, match="by PSS"):
        make_result(off(), shared(pss_bytes=(HELD - FREED) // 100 * 97))


@pytest.mark.parametrize(
    "name", ["saved_zero_bytes", "saved_content_bytes", "pss_bytes", "overhead_bytes"]
)
def test_what_was_not_counted_is_named(name: str) -> None:
    with pytest.raises(MeasurementError, match=f"not counted: {name}"):
        make_result(off(), shared(**{name: None}))


def test_a_run_that_was_never_counted_has_no_result() -> None:
    with pytest.raises(MeasurementError, match="nothing was counted"):
        converged(a_run(EngineKind.OFF, [an_oracle(90, 9, "work")]))


def test_store_that_nobody_maps_is_memory_used() -> None:
    store = Store(allocated_bytes=900, mapped_bytes=500)
    assert memory_used_bytes(cost(1, views_pss_bytes=300), store) == PAGE_BYTES + 300 + 400


def test_overhead_never_falls_below_what_is_certain() -> None:
    """A heap that shrank is no income."""
    before = cost(1, guest_heap_bytes=9000)
    now = cost(1, guest_heap_bytes=10, broker_bytes=70)
    assert overhead_bytes(before, now, 30, 1) == 30 + 2 * KERNEL_STACK_BYTES + 70

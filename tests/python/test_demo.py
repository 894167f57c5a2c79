# SPDX-License-Identifier: GPL-2.0-or-later
"""The demo's figures and verdicts, on made-up measurements."""

import msgspec
import pytest

from memshare.bench.cost import KERNEL_STACK_BYTES, Cost, memory_used_bytes, overhead_bytes
from memshare.bench.demo import Measure, Result, disagreement, make_result, misses
from memshare.bench.oracle import PAGE_BYTES, Reckoning, Store
from memshare.model import PageStats
from samples import stats

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
GUESTS = 4
HELD = 200_000
FREED = 100_000
STORE = 30_000


def cost(ram_pages: int, **changes: int) -> Cost:
    plain = Cost(
        ram_pss_bytes=ram_pages * PAGE_BYTES,
        guest_heap_bytes=1000,
        guest_tables_bytes=1000,
        slab_bytes=1000,
        broker_bytes=0,
    )
    return plain._replace(**changes)


def measure(*, on: bool, saved: int = FREED, ram_pages: int | None = None) -> Measure:
    """Sharing off, or on: then half of the store's PSS falls on views, none is unmapped."""
    freed = FREED if on else 0
    store = STORE if on else 0
    figures = stats(
        saved_zero_bytes=saved // GUESTS // 4 * PAGE_BYTES if on else 0,
        saved_content_bytes=saved // GUESTS // 4 * 3 * PAGE_BYTES if on else 0,
        overhead_bytes=100,
        scan_cpu_ns=500_000_000,
    )
    if ram_pages is None:
        ram_pages = HELD - freed - store // 2
    return Measure(
        reckoning=Reckoning(
            held=HELD, frames=HELD - freed, oracle=110_000, store=store, held_zero=25_000
        ),
        store=Store(
            allocated_bytes=store * PAGE_BYTES,
            mapped_bytes=store * PAGE_BYTES,
            views_pss_bytes=store // 2 * PAGE_BYTES,
            broker_pss_bytes=0,
        ),
        cost=cost(ram_pages, broker_bytes=5000 if on else 0, slab_bytes=3000 if on else 1000),
        stats=[msgspec.convert(figures, PageStats)] * GUESTS,
        broker_cpu_seconds=0.25,
    )


def result(**changes: object) -> Result:
    made = make_result(measure(on=False), measure(on=True), "ok")
    return msgspec.structs.replace(made, **changes)


def test_result_has_exactly_the_keys_asked_for() -> None:
    assert list(Result.__struct_fields__) == ISSUE_KEYS


def test_result_adds_up() -> None:
    made = result()
    assert made.memory_used_before_bytes == HELD * PAGE_BYTES
    assert made.frames_freed_bytes == FREED * PAGE_BYTES
    assert made.overhead_bytes == 4 * 100 + 4 * 2 * KERNEL_STACK_BYTES + 2000 + 5000
    assert made.memory_used_bytes == (HELD - FREED) * PAGE_BYTES + made.overhead_bytes
    assert made.saved_zero_bytes + made.saved_content_bytes == FREED * PAGE_BYTES
    assert made.overcommit_ratio_off == pytest.approx(4 * (256 << 20) / (HELD * PAGE_BYTES), 1e-3)
    assert made.overcommit_ratio > made.overcommit_ratio_off
    assert made.scan_cpu_seconds == 2.25
    assert misses(made) == []


def test_each_miss_is_named() -> None:
    assert "guest1" in misses(result(integrity="guest1 lost a byte"))[0]
    assert "freed 79.5%" in misses(result(frames_freed_bytes=795, oracle_bytes=1000))[0]


@pytest.mark.parametrize(("claimed", "misses_bar"), [(1.019, False), (1.021, True), (0.979, True)])
def test_I10_claims_that_differ_from_page_tables_fail(claimed: float, misses_bar: bool) -> None:
    made = result(saved_zero_bytes=0, saved_content_bytes=int(FREED * PAGE_BYTES * claimed))
    assert bool(misses(made)) is misses_bar


def test_I10_pss_that_differs_from_page_frames_is_noticed() -> None:
    assert disagreement(measure(on=True)) is None
    forgotten = measure(on=True, ram_pages=HELD - FREED - STORE)
    assert disagreement(forgotten) is not None


def test_store_that_nobody_maps_is_memory_used() -> None:
    store = Store(allocated_bytes=900, mapped_bytes=500, views_pss_bytes=300, broker_pss_bytes=100)
    assert memory_used_bytes(cost(1), store) == PAGE_BYTES + 300 + 400


def test_overhead_never_falls_below_what_is_certain() -> None:
    """A heap that shrank is no income."""
    before = cost(1, guest_heap_bytes=9000)
    now = cost(1, guest_heap_bytes=10, broker_bytes=70)
    assert overhead_bytes(before, now, 30, 1) == 30 + 2 * KERNEL_STACK_BYTES + 70

# SPDX-License-Identifier: GPL-2.0-or-later
"""The parts of `./dev bench` that judge and sum: no timing, no figures of this machine."""

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from tests.lib.broker import build_directory

from memshare.bench import (
    cache,
    churn,
    first_pass,
    idle,
    limited,
    metadata,
    passes,
    plot,
    rig,
    status,
)
from memshare.bench.cost import Cost
from memshare.bench.workers import Worker
from memshare.errors import MeasurementError, MemshareError, UsageError

FACTS = {"kernel": "", "cpu_model": "", "load_before": 0.0}
SIZE_BYTES = 4 << 20
PAGES = SIZE_BYTES // 4096
WORKER = "tests/bench/region-worker"

replace: Callable[..., msgspec.Struct] = msgspec.structs.replace


def test_oracle_is_that_of_the_mix() -> None:
    assert rig.oracle_pages(128) == 32 + 16
    assert rig.oracle_pages(256, 4) == 64 + 48


def test_missed_bars_end_in_an_error_after_the_results_are_written(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "result.json"
    result = passes_result()
    with pytest.raises(MeasurementError, match="one; two"):
        rig.finish([result], file, ["one", "two"])
    assert json.loads(file.read_text())[0]["case"] == "idle"
    rig.finish([result], None, [])


@pytest.mark.parametrize(
    ("freed", "hashed", "verdict"),
    [
        ([0, 0, 0, 0, 0], [0, 0, 0, 0, 0], False),  # the first passes only look
        ([0, 0, 7, 9, 9, 9, 9], [0, 9, 0, 0, 0, 0, 0], True),
        ([0, 0, 7, 9, 9, 9, 9], [0, 9, 0, 0, 0, 0, 1], False),
        ([0, 0, 7, 9, 9, 9, 8], [0, 9, 0, 0, 0, 0, 0], False),
    ],
)
def test_still(freed: list[int], hashed: list[int], verdict: bool) -> None:
    assert passes.is_still(freed, hashed, 999) is verdict


def passes_result() -> idle.Result:
    return idle.Result(
        case="idle", mix="runs16", ours_cpu_seconds=1.0, ksmd_cpu_seconds=200.0, cpu_ratio=1 / 200,
        oracle_fraction_ours=1.0, oracle_fraction_ksmd=0.99, ours=[], ksmd=[],
        size_bytes=4 << 30, ksm_smart_scan="1", **FACTS,
    )  # fmt: skip


def test_idle_verdict() -> None:
    good = passes_result()
    assert idle.misses([good, replace(good, case="written", cpu_ratio=0.02)]) == []
    assert idle.misses([replace(good, cpu_ratio=0.5, size_bytes=1 << 30)]) == []
    assert idle.misses(
        [replace(good, cpu_ratio=0.006), replace(good, oracle_fraction_ksmd=0.9)]
    ) == [
        "runs16 idle: cpu_ratio 0.0060 is above its bar, 0.005",
        "runs16 idle: ksmd stopped at 90.0% of the oracle",
    ]


def test_first_pass_charges_every_pass() -> None:
    repeats = [
        first_pass.Repeat(
            read_cpu_seconds=0.8 * factor,
            passes=[passes.Round(0.25 * factor, 0.5, 0), passes.Round(0.75 * factor, 0.25, 256)],
        )
        for factor in (1, 4, 2)
    ]
    result = first_pass.summarise(repeats, 1 << 30, FACTS)
    assert result.engine_bytes_per_cpu_second == (1 << 30) / 2
    assert (result.read_ratio, result.broker_cpu_seconds) == (0.8, 0.75)
    assert first_pass.misses(result) == []
    assert first_pass.misses(replace(result, read_ratio=0.79)) == [
        "read_ratio 0.790 is below its bar, 0.8"
    ]
    assert first_pass.misses(replace(result, read_ratio=0.1, size_bytes=64 << 20)) == []


def test_cache_slowdowns_are_against_the_pause_of_the_same_turn() -> None:
    def run(rate: float, *turns: tuple[float, float]) -> cache.Run:
        return cache.Run({"l2": [cache.Turn(*turn) for turn in turns]}, rate, 1.0)

    ours = cache.slowdown([run(880, (2.0, 1.0), (3.0, 2.0)), run(870, (4.0, 4.0))], "l2")
    assert (ours.median, ours.low, ours.rate_pages) == (0.5, None, [880, 870])
    ksmd = cache.slowdown([run(1090, (1.0, 1.0))], "l2")
    result = cache.Result(
        place="same", set="l2", set_bytes=1 << 17, ksmd=ksmd, ours=ours, scan_rate_pages=1000,
        size_bytes=SIZE_BYTES, **FACTS,
    )  # fmt: skip
    assert cache.misses([result, replace(result, set="l3")]) == [
        "same: ours scanned 875 pages/s instead of 1000"
    ]


def test_ksmd_catches_up_within_a_step() -> None:
    assert cache.pages_due(50_000, 0.0, 0) == 1000  # five batches in a tenth of a second
    assert cache.pages_due(50_000, 1.0, 49_000) == 1200
    assert cache.pages_due(50_000, 1.0, 60_000) == 1  # ahead: as little as ksmd can be told


BEFORE = Cost(
    ram_pss_bytes=0, views_pss_bytes=0, guest_heap_bytes=10, guest_tables_bytes=20, slab_bytes=1000,
    broker_bytes=5,
)  # fmt: skip


def metadata_result(now: Cost) -> metadata.Result:
    facts = {
        "unreclaimable_bytes": 0, "mappings": 9, "oracle_fraction": 1.0, "processes": 2,
        "size_bytes": 1 << 30, **FACTS,
    }  # fmt: skip
    return metadata.reckon(
        "runs8", BEFORE, now, freed_bytes=10_000_000, zero_bytes=6_000_000, facts=facts
    )


def test_metadata_sums() -> None:
    now = BEFORE._replace(
        guest_heap_bytes=4010, guest_tables_bytes=0, slab_bytes=101_000, broker_bytes=30_464
    )
    result = metadata_result(now)
    assert (result.slab_bytes, result.tables_bytes, result.kernel_bytes) == (100_000, 0, 100_000)
    # Two engines with two threads of 16 KiB each.
    assert result.overhead_bytes == 100_000 + 4000 + 30_464 + 4 * 16_384 == 200_000
    assert (result.kernel_ratio, result.overhead_ratio) == (0.01, 0.02)
    assert (result.kernel_ratio_of_content, result.overhead_ratio_of_content) == (0.025, 0.05)
    assert metadata.misses([result]) == []
    over = metadata_result(now._replace(broker_bytes=40_464))
    assert metadata.misses([over, replace(over, case="runs16"), replace(over, size_bytes=1)]) == [
        "runs8: everything takes 2.10% of what is saved, more than 2%"
    ]


def moment(seconds: float, saved: int = 100, mappings: int = 10, dead: int = 0) -> churn.Moment:
    return churn.Moment(
        seconds=seconds,
        saved_bytes=saved,
        mappings=mappings,
        slots_live=100 - dead,
        slots_dead=dead,
    )


def test_churn_compares_the_end_with_the_start_and_keeps_the_floor() -> None:
    line = [moment(at, saved=80 - at, mappings=20 if at < 4 else 30, dead=at) for at in range(8)]
    result = churn.summarise(
        moment(0), line, moment(9, saved=94, mappings=99, dead=50), 50,
        {"cpu_seconds": 1.0, "size_bytes": 1 << 30, "seconds": 8, **FACTS},
    )  # fmt: skip
    assert (result.saved_floor_bytes, result.kept_ratio) == (73, 0.94)
    assert (result.dead_ratio, result.dead_ratio_end) == (0.065, 0.5)
    assert (result.mappings_growth_ratio, result.mappings_most) == (1.5, 99)
    assert churn.misses(result) == [
        "94.0% of the savings were left, not 95%",
        "99 mappings, more than 50",
        "mappings go on growing, by 1.50",
    ]
    assert (
        churn.misses(replace(result, dead_ratio=0.11))[-1] == "11.0% of the store is dead, not 10%"
    )


def test_churn_of_one_round() -> None:
    result = churn.summarise(
        moment(0), [moment(1)], moment(2), 50,
        {"cpu_seconds": 1.0, "size_bytes": 1 << 30, "seconds": 1, **FACTS},
    )  # fmt: skip
    assert churn.misses(result) == []


def test_limited_verdict() -> None:
    result = limited.Result(
        oracle_fraction=0.1, shared_pages=[1, 1], zero_pages=[1, 1], mappings=[80, 79],
        max_map_count=100, size_bytes=1, **FACTS,
    )  # fmt: skip
    assert limited.misses(result) == []
    assert limited.misses(replace(result, mappings=[79, 81])) == [
        "81 mappings of 100 are more than 80%"
    ]


def region_pages(one: Worker) -> list[bytes]:
    with open(f"/proc/{one.region.pid}/mem", "rb", buffering=0) as memory:
        memory.seek(one.region.start)
        data = memory.read(one.region.length_bytes)
    return [data[at : at + 4096] for at in range(0, len(data), 4096)]


def worker(case: str, side: int) -> Worker:
    return Worker(build_directory() / WORKER, case, side, SIZE_BYTES, busy=False)


def test_region_without_a_mix_has_no_equal_pages() -> None:
    with worker("unlike", 0) as one:
        one.ready()
        assert len(set(region_pages(one))) == PAGES


def test_renewed_pages_are_equal_again() -> None:
    with worker("runs4", 0) as first, worker("runs4", 1) as second:
        for one in (first, second):
            one.ready()
        old = [region_pages(one) for one in (first, second)]
        common_then = set(old[0]) & set(old[1])
        for one in (first, second, first, second):
            assert 0 < int(one.ask("renew 300")) < PAGES // 2
            one.ask("read")
        new = [region_pages(one) for one in (first, second)]
        common = set(new[0]) & set(new[1])
        assert len(common) == len(common_then) == 1 + PAGES // 4
        assert 1 < len(common & common_then) < len(common)  # zeros, and what was not drawn
        for then, now in zip(old, new, strict=True):
            assert now.count(bytes(4096)) == PAGES // 4
            assert len(set(now)) == 1 + PAGES // 4 + PAGES // 2
            assert sum(a != b for a, b in zip(then, now, strict=True)) > PAGES // 4


def test_written_pages_are_unlike_all_others() -> None:
    with worker("runs16", 0) as one:
        one.ready()
        old = region_pages(one)
        written = int(one.ask("write 100"))
        one.ask("read")
        changed = [new for then, new in zip(old, region_pages(one), strict=True) if new != then]
        assert len(changed) == len(set(changed)) == written
        assert not set(changed) & set(old)


def test_plain_sum_reads_everything() -> None:
    with worker("runs8", 0) as one:
        one.ready()
        words = memoryview(b"".join(region_pages(one))).cast("Q")
        assert int(one.ask("sum").split()[1]) == sum(words) % (1 << 64)


def test_pass_needs_an_engine() -> None:
    with worker("runs8", 0) as one:
        one.ready()
        with pytest.raises(MemshareError, match="no engine"):
            one.ask("pass")


def test_panels_tell_files_apart() -> None:
    idle_panel = plot.panel_of("file", [msgspec.to_builtins(passes_result())])
    assert idle_panel.labels == ["runs16 idle"]
    assert idle_panel.series == {"ours": [1000.0], "ksmd": [200_000.0]}
    over = metadata_result(BEFORE._replace(slab_bytes=101_000, broker_bytes=34_464))
    both = [msgspec.to_builtins(each) for each in (over, replace(over, case="runs16"))]
    assert plot.panel_of("file", both).series["kernel"] == [1.0, 1.0]
    assert plot.panel_of("file", both).limits == [2.0, None]
    for records in ([], [{"case": "idle"}]):
        with pytest.raises(UsageError, match="file: not the results"):
            plot.panel_of("file", records)


def test_same_files_give_the_same_picture(tmp_path: Path) -> None:
    line = [moment(at, saved=100 - at, dead=at) for at in range(3)]
    churned = churn.summarise(
        moment(0), line, moment(9), 50,
        {"cpu_seconds": 1.0, "size_bytes": 1 << 30, "seconds": 8, **FACTS},
    )  # fmt: skip
    panels = [plot.panel_of("file", [msgspec.to_builtins(churned)])]
    assert panels[0].at == [0, 1, 2]
    assert panels[0].series == {
        "saved, of the start": [100.0, 99.0, 98.0], "dead, of the store": [0.0, 1.0, 2.0],
    }  # fmt: skip
    files = [tmp_path / name for name in ("a.svg", "b.svg")]
    for file in files:
        plot.draw(panels, file)
    assert files[0].read_bytes() == files[1].read_bytes()
    assert b"dead, of the store" in files[0].read_bytes()


def test_the_bar_of_status_is_for_fifty_guests_and_their_median() -> None:
    result = status.Result(
        guests=50,
        median_ms=250.0,
        fastest_ms=1.0,
        slowest_ms=900.0,
        direct_ms=400.0,
        python_ms=1.0,
        runs_ms=[],
        runs_direct_ms=[],
        kernel="",
        cpu_model="",
        load_before=0.0,
    )
    assert status.misses(result) == []
    late = replace(result, median_ms=251.0)
    assert status.misses(late) == ["50 guests: 251 ms, bar 250 ms"]
    assert status.misses(replace(late, guests=49)) == []

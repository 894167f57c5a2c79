# SPDX-License-Identifier: GPL-2.0-or-later
"""`./dev bench cache`: what scanning does to a program whose data lie in the processor's caches. Needs root.

A scanner that reads memory fills the caches with what nobody will ask for. So a program reads eight bytes at random places of
a set that fits a cache, all the while, and what a read takes is measured beside each scanner and without one:

off    two processes hold their regions, and nothing scans
ksmd   scans them at so many pages a second
ours   engines scan them at as many, and the broker holds what they share

l2     the set is a quarter of the core's own cache, l3: a quarter of what the cores share; as much again are places and results
same   the scanner's threads have the program's core: its own cache is filled as well. What a read takes is CPU time of
       the program, so the time that the scanner takes from it is not counted
beside they have another core: only what the cores share is filled

Regions are fresh for each run and hold the mix `runs16`. It lasts as long as two passes take: what is unique has been looked
at twice then, and most of what can be shared is. Later, engines that track writes read next to nothing, which is
`./dev bench idle`.
"""

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import click
import msgspec
import numpy as np
import numpy.typing as npt

from memshare.bench.cores import alone_on_one, together_on_one
from memshare.bench.oracle import PAGE_BYTES
from memshare.bench.rig import (
    Rig,
    finish,
    machine_facts,
    many_mappings,
    number,
    parse_size,
    session,
)
from memshare.cli import run
from memshare.clients import ksm, procfs
from memshare.errors import HostError
from memshare.render import Column, Unit, render_table

CASE = "runs16"
PROCESSES = 2
PASSES = 2
PLACES = {"same": together_on_one, "beside": alone_on_one}
SCANNERS = ("off", "ksmd", "ours")
SETS = {"l2": 2, "l3": 3}  # by level
TURN_SECONDS = 0.1
KSMD_REST_MS = 20
RATE_TOLERANCE = 0.1
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


class Run(NamedTuple):
    """One scanner once: nanoseconds a read takes by set, pages scanned a second, CPU seconds of who scans."""

    read_ns: dict[str, float]
    rate_pages: float
    cpu_seconds: float


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One place and one set; slowdowns are medians over the repeats, each against `off` of its repeat."""

    place: str
    set: str
    set_bytes: int
    ksmd_slowdown: float
    ours_slowdown: float
    off_ns: list[float]
    ksmd_ns: list[float]
    ours_ns: list[float]
    ksmd_rate_pages: list[float]
    ours_rate_pages: list[float]
    ksmd_cpu_seconds: list[float]
    ours_cpu_seconds: list[float]
    scan_rate_pages: int
    seconds: float
    size_bytes: int
    kernel: str
    cpu_model: str
    load_before: float


class Reads:
    """A set of so many bytes and random places in it."""

    def __init__(self, set_bytes: int) -> None:
        """Fill it; a place and a result are eight bytes each, so half as many are as much again."""
        chance = np.random.default_rng(1)
        self._words: npt.NDArray[np.uint64] = np.arange(set_bytes // 8, dtype=np.uint64)
        self._places = chance.integers(0, len(self._words), len(self._words) // 2)
        self._into = np.empty(len(self._places), dtype=np.uint64)

    def take_ns(self, seconds: float) -> list[float]:
        """CPU nanoseconds a read took, for each round until so many seconds are over; the first one only warms up."""
        until = time.monotonic() + seconds
        found: list[float] = []
        self._round()
        while time.monotonic() < until or not found:
            before = time.thread_time_ns()
            self._round()
            found.append((time.thread_time_ns() - before) / len(self._places))
        return found

    def _round(self) -> None:
        np.take(self._words, self._places, out=self._into, mode="clip")


def cache_bytes(level: int) -> int:
    """Size of a core's cache of this level that holds data; HostError where the kernel does not tell."""
    for index in sorted(CACHES.glob("index*")):
        if (index / "level").read_text().strip() != str(level):
            continue
        if (index / "type").read_text().strip() != "Instruction":
            return int((index / "size").read_text().strip().removesuffix("K")) << 10
    raise HostError(f"{CACHES}: no cache of level {level}")


def pages_due(rate: float, seconds: float, scanned: int) -> int:
    """How many pages a batch of ksmd needs so that it is at its rate when the next turn is over. Pure."""
    batches = TURN_SECONDS * 1000 / KSMD_REST_MS
    return max(1, round((rate * (seconds + TURN_SECONDS) - scanned) / batches))


def pages_scanned() -> int:
    """Count all that ksmd has looked at so far; HostError before Linux 6.6."""
    found = ksm.read_counters().pages_scanned
    if found is None:
        raise HostError("this kernel does not count what ksmd scans", "Linux 6.6 does")
    return found


class Bench:
    """What all runs have in common."""

    def __init__(self, rig: Rig, rate: int) -> None:
        """Remember, and fill the sets."""
        self._rig, self._rate = rig, rate
        self.seconds = PASSES * PROCESSES * rig.size_bytes / PAGE_BYTES / rate
        self.set_bytes = {name: cache_bytes(level) // 4 for name, level in SETS.items()}
        self._reads = {name: Reads(size) for name, size in self.set_bytes.items()}
        self._ksmd = ksm.ksmd_pid()

    def run(self, label: str, scanner: str, place: str) -> Run:
        """One scanner once."""
        return {"off": self._off, "ksmd": self._with_ksmd, "ours": self._ours}[scanner](
            label, place
        )

    def _off(self, label: str, place: str) -> Run:
        with (
            self._rig.workers(label, CASE, count=PROCESSES) as pair,
            PLACES[place]([worker.region.pid for worker in pair]),
        ):
            return self._watch(label, lambda _seconds: 0, lambda: 0)

    def _with_ksmd(self, label: str, place: str) -> Run:
        with self._rig.workers(label, CASE, count=PROCESSES) as pair:
            ksm.refuse_other_marks()
            knobs = {"advisor_mode": "none", "sleep_millisecs": str(KSMD_REST_MS)}
            ksm.write_knobs({**knobs, "run": ksm.RUN_STOP})
            for worker in pair:
                worker.ask("ksm")
            start = pages_scanned()

            def pace(seconds: float) -> int:
                scanned = pages_scanned() - start
                ksm.write_knobs(
                    {
                        "pages_to_scan": str(pages_due(self._rate, seconds, scanned)),
                        "run": ksm.RUN_MERGE,
                    }
                )
                return scanned

            with PLACES[place]([self._ksmd, *(worker.region.pid for worker in pair)]):
                try:
                    found = self._watch(label, pace, lambda: procfs.cpu_ns(self._ksmd))
                finally:
                    ksm.write_knobs({"run": ksm.RUN_STOP})
            for worker in pair:
                worker.ask("read")
        ksm.write_knobs({"run": ksm.RUN_UNMERGE})
        return found

    def _ours(self, label: str, place: str) -> Run:
        with self._rig.group(label, CASE, count=PROCESSES) as group:
            for worker in group.workers:
                worker.ask(f"rate {self._rate // PROCESSES}")
            with PLACES[place](group.pids):
                group.start("content")
                found = self._watch(
                    label,
                    lambda _seconds: sum(
                        int(worker.stats()["scanned_pages"]) for worker in group.workers
                    ),
                    group.cpu_ns,
                )
            for worker in group.workers:
                worker.ask("read")
        return found

    def _watch(self, label: str, look: Callable[[float], int], cpu_ns: Callable[[], int]) -> Run:
        """Read by turns from each set while somebody scans. `look` is told the time and counts pages."""
        self._rig.progress.update(f"{label}: {self.seconds:.0f} s")
        found: dict[str, list[float]] = {name: [] for name in self._reads}
        cpu_before, start = cpu_ns(), time.monotonic()
        pages_before = look(0.0)
        while (now := time.monotonic() - start) < self.seconds:
            for name, reads in self._reads.items():
                found[name] += reads.take_ns(TURN_SECONDS / len(self._reads))
            look(now)
        pages, took = look(now) - pages_before, time.monotonic() - start
        return Run(
            read_ns={name: statistics.fmean(values) for name, values in found.items()},
            rate_pages=pages / took,
            cpu_seconds=(cpu_ns() - cpu_before) / 1e9,
        )


def summarise(
    place: str,
    runs: dict[str, list[Run]],
    bench_facts: dict[str, object],
    set_bytes: dict[str, int],
) -> list[Result]:
    """Compare each run with its repeat's run without a scanner. Pure."""
    results = []
    for name, size in set_bytes.items():
        ns = {who: [each.read_ns[name] for each in runs[who]] for who in SCANNERS}
        slowdown = {
            who: statistics.median(
                with_it / without for with_it, without in zip(ns[who], ns["off"], strict=True)
            )
            - 1
            for who in ("ksmd", "ours")
        }
        record: dict[str, object] = {"place": place, "set": name, "set_bytes": size, **bench_facts}
        for who in SCANNERS:
            record[f"{who}_ns"] = ns[who]
        for who in ("ksmd", "ours"):
            record[f"{who}_slowdown"] = slowdown[who]
            record[f"{who}_rate_pages"] = [each.rate_pages for each in runs[who]]
            record[f"{who}_cpu_seconds"] = [each.cpu_seconds for each in runs[who]]
        results.append(msgspec.convert(record, Result))
    return results


def misses(results: Sequence[Result]) -> list[str]:
    """Where a scanner was not at the rate that both were to have. Pure."""
    return [
        f"{result.place}: {who} scanned {rate:.0f} pages/s instead of {result.scan_rate_pages}"
        for result in results
        if result.set == next(iter(SETS))
        for who, rates in (("ksmd", result.ksmd_rate_pages), ("ours", result.ours_rate_pages))
        for rate in [statistics.median(rates)]
        if abs(rate / result.scan_rate_pages - 1) > RATE_TOLERANCE
    ]


def show(results: Sequence[Result]) -> None:
    """Print the table."""
    columns = [
        Column("place", "scanner"),
        Column("set", "set"),
        Column("off", "read ns", Unit.COUNT),
        Column("ksmd", "ksmd", Unit.COUNT),
        Column("ours", "ours", Unit.COUNT),
        Column("ksmd_rate", "ksmd pages/s", Unit.COUNT),
        Column("ours_rate", "ours pages/s", Unit.COUNT),
        Column("ksmd_cpu", "ksmd CPU s", Unit.COUNT),
        Column("ours_cpu", "ours CPU s", Unit.COUNT),
    ]
    median = statistics.median
    records = [
        {
            "place": result.place,
            "set": f"{result.set} {result.set_bytes >> 10} KiB",
            "off": number(median(result.off_ns), 3),
            "ksmd": f"{result.ksmd_slowdown:+.1%}",
            "ours": f"{result.ours_slowdown:+.1%}",
            "ksmd_rate": number(median(result.ksmd_rate_pages), 0),
            "ours_rate": number(median(result.ours_rate_pages), 0),
            "ksmd_cpu": number(median(result.ksmd_cpu_seconds), 2),
            "ours_cpu": number(median(result.ours_cpu_seconds), 2),
        }
        for result in results
    ]
    render_table(columns, records, sys.stdout)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True)
@click.option(
    "--rate",
    type=click.IntRange(1000),
    default=50_000,
    show_default=True,
    help="Pages a second, of both regions together.",
)
@click.option(
    "--size", default="512M", show_default=True, callback=parse_size, help="Of each region."
)
def main(*, json_file: Path | None, repeats: int, rate: int, size: int) -> None:
    """Measure how much slower a program gets whose data lie in the caches, while ksmd or engines scan.

    Needs root, and that nobody else uses KSM. There is no bar; exit 1 when a scanner did not scan at the rate.

    A quick look: ./dev bench cache --size 64M --repeats 1
    """
    results: list[Result] = []
    with session(json_file) as progress, ksm.preserved(), many_mappings():
        bench = Bench(Rig(size, progress), rate)
        facts = {
            **machine_facts(), "scan_rate_pages": rate, "seconds": bench.seconds, "size_bytes": size,
        }  # fmt: skip
        for place in PLACES:
            runs: dict[str, list[Run]] = {who: [] for who in SCANNERS}
            for turn in range(repeats):
                for who in SCANNERS:
                    label = f"{place} {turn + 1}/{repeats} {who}"
                    runs[who].append(bench.run(label, who, place))
            results += summarise(place, runs, facts, bench.set_bytes)
    show(results)
    finish(results, json_file, misses(results))


if __name__ == "__main__":
    run(main, sys.argv[1:], "./dev bench cache")

# SPDX-License-Identifier: GPL-2.0-or-later
"""`./dev bench cache`: what scanning does to a program whose data lie in the processor's caches. Needs root.

A scanner that reads memory fills the caches with what nobody will ask for. So a program reads eight bytes at random places of
a set that fits a cache, all the while, and what a read takes is measured while a scanner scans two processes' regions
and while it pauses, by turns of half a second: what the cores share, others use as well, and much more at one time than at another.

ksmd   the kernel's, at so many pages a second
ours   engines at as many, and the broker that holds what they share

l2     the set is a quarter of the core's own cache, l3: a quarter of what the cores share; as much again are places and results
same   the scanner's threads have the program's core: its own cache is filled as well. What a read takes is CPU time of
       the program, so the time that the scanner takes from it is not counted
beside they have another core: only what the cores share is filled

Regions are fresh for each run and hold the mix `runs16`. It lasts as long as two passes take: at the second, both merge what is
common. Later, engines that track writes read next to nothing, which is `./dev bench idle`.
"""

import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import click
import msgspec
import numpy as np
import numpy.typing as npt

from memshare.bench.cores import alone_on_one, together_on_one
from memshare.bench.oracle import PAGE_BYTES
from memshare.bench.rig import (
    Group,
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
from memshare.experiment.statistics import summarise
from memshare.render import Column, Unit, render_table

CASE = "runs16"
PROCESSES = 2
PASSES = 2
PLACES = {"same": together_on_one, "beside": alone_on_one}
SCANNERS = ("ksmd", "ours")
SETS = {"l2": 2, "l3": 3}  # by level
TURN_STEPS = 5
STEP_SECONDS = 0.1
KSMD_REST_MS = 20
RATE_TOLERANCE = 0.1
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


class Turn(NamedTuple):
    """Nanoseconds a read took while the scanner scanned, and in the pause after it."""

    scanning_ns: float
    paused_ns: float


class Run(NamedTuple):
    """One scanner once: its turns by set, pages scanned a second of scanning, CPU seconds of who scans."""

    turns: dict[str, list[Turn]]
    rate_pages: float
    cpu_seconds: float


class Slowdown(msgspec.Struct, frozen=True, kw_only=True):
    """Of a read by a scanner: median over all turns, its 95% interval where there are enough, and each run's rate and cost."""

    median: float
    low: float | None
    high: float | None
    rate_pages: list[float]
    cpu_seconds: list[float]
    turns: list[Turn]


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One place and one set."""

    place: str
    set: str
    set_bytes: int
    ksmd: Slowdown
    ours: Slowdown
    scan_rate_pages: int
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
    """How many pages a batch of ksmd needs so that it is at its rate when the next step is over. Pure."""
    batches = STEP_SECONDS * 1000 / KSMD_REST_MS
    return max(1, round((rate * (seconds + STEP_SECONDS) - scanned) / batches))


def pages_scanned() -> int:
    """Count all that ksmd has looked at so far; HostError before Linux 6.6."""
    found = ksm.read_counters().pages_scanned
    if found is None:
        raise HostError("this kernel does not count what ksmd scans", "Linux 6.6 does")
    return found


class Scanner(Protocol):
    """What scans, as the program beside it steers it."""

    def steer(self, seconds: float) -> None:
        """Scan on; it has for so long."""

    def pause(self) -> None:
        """Scan no more for now."""

    def scanned(self) -> int:
        """Count all pages looked at so far."""
        ...

    def cpu_ns(self) -> int:
        """CPU time so far."""
        ...


class Ksmd:
    """ksmd, held to a rate by the size of its batches."""

    def __init__(self, rate: int) -> None:
        """Not yet running."""
        self._rate = rate
        self._start = pages_scanned()
        self.pid = ksm.ksmd_pid()
        ksm.write_knobs(
            {"advisor_mode": "none", "sleep_millisecs": str(KSMD_REST_MS), "run": ksm.RUN_STOP}
        )

    def steer(self, seconds: float) -> None:
        """Make up for what is missing."""
        due = pages_due(self._rate, seconds, self.scanned())
        ksm.write_knobs({"pages_to_scan": str(due), "run": ksm.RUN_MERGE})

    def pause(self) -> None:
        """Stop; what is merged stays so."""
        ksm.write_knobs({"run": ksm.RUN_STOP})

    def scanned(self) -> int:
        """Since it was made."""
        return pages_scanned() - self._start

    def cpu_ns(self) -> int:
        """Of the kernel's thread."""
        return procfs.cpu_ns(self.pid)


class Engines:
    """The engines of a group; each paces itself."""

    def __init__(self, group: Group, rate: int) -> None:
        """Make them, paused."""
        self._group, self._rate = group, rate
        self._is_going = True
        self.pause()
        group.start("content")

    def steer(self, seconds: float) -> None:
        """Let them go."""
        if not self._is_going:
            self._set_rate(self._rate // len(self._group.workers))
        self._is_going = True

    def pause(self) -> None:
        """All but stop: an engine without a rate stops tracking writes too, and would begin anew each time."""
        self._set_rate(1)
        self._is_going = False

    def scanned(self) -> int:
        """By all of them."""
        return sum(int(worker.stats()["scanned_pages"]) for worker in self._group.workers)

    def cpu_ns(self) -> int:
        """Of the processes and the broker."""
        return self._group.cpu_ns()

    def _set_rate(self, pages: int) -> None:
        for worker in self._group.workers:
            worker.ask(f"rate {pages}")


class Bench:
    """What all runs have in common."""

    def __init__(self, rig: Rig, rate: int) -> None:
        """Remember, and fill the sets."""
        self._rig, self._rate = rig, rate
        seconds = PASSES * PROCESSES * rig.size_bytes / PAGE_BYTES / rate
        self._turns = max(1, round(seconds / (TURN_STEPS * STEP_SECONDS)))
        self.set_bytes = {name: cache_bytes(level) // 4 for name, level in SETS.items()}
        self._reads = {name: Reads(size) for name, size in self.set_bytes.items()}

    def ksmd(self, label: str, place: str) -> Run:
        """Have ksmd scan."""
        with self._rig.workers(label, CASE, count=PROCESSES) as pair:
            ksm.refuse_other_marks()
            scanner = Ksmd(self._rate)
            for worker in pair:
                worker.ask("ksm")
            with PLACES[place]([scanner.pid, *(worker.region.pid for worker in pair)]):
                found = self._watch(label, scanner)
            for worker in pair:
                worker.ask("read")
        ksm.write_knobs({"run": ksm.RUN_UNMERGE})
        return found

    def ours(self, label: str, place: str) -> Run:
        """Have engines scan."""
        with self._rig.group(label, CASE, count=PROCESSES) as group:
            with PLACES[place](group.pids):
                found = self._watch(label, Engines(group, self._rate))
            for worker in group.workers:
                worker.ask("read")
        return found

    def _watch(self, label: str, scanner: Scanner) -> Run:
        """Read while it scans, and in the pause after that."""
        found: dict[str, list[Turn]] = {name: [] for name in self._reads}
        cpu_before, scanned_before, seconds = scanner.cpu_ns(), scanner.scanned(), 0.0
        for turn in range(self._turns):
            self._rig.progress.update(f"{label}: turn {turn + 1} of {self._turns}")
            scanning: dict[str, list[float]] = {name: [] for name in self._reads}
            paused: dict[str, list[float]] = {name: [] for name in self._reads}
            for _ in range(TURN_STEPS):
                began = time.monotonic()
                scanner.steer(seconds)
                self._step(scanning)
                seconds += time.monotonic() - began
            scanner.pause()
            for _ in range(TURN_STEPS):
                self._step(paused)
            for name, turns in found.items():
                turns.append(Turn(statistics.fmean(scanning[name]), statistics.fmean(paused[name])))
        return Run(
            turns=found,
            rate_pages=(scanner.scanned() - scanned_before) / seconds,
            cpu_seconds=(scanner.cpu_ns() - cpu_before) / 1e9,
        )

    def _step(self, found: dict[str, list[float]]) -> None:
        for name, reads in self._reads.items():
            found[name] += reads.take_ns(STEP_SECONDS / len(self._reads))


def slowdown(runs: Sequence[Run], name: str) -> Slowdown:
    """Compare each turn with the pause after it. Pure."""
    turns = [turn for run in runs for turn in run.turns[name]]
    summary = summarise([turn.scanning_ns / turn.paused_ns - 1 for turn in turns])
    assert summary is not None  # a run has a turn at least
    return Slowdown(
        median=summary.median,
        low=summary.low,
        high=summary.high,
        rate_pages=[run.rate_pages for run in runs],
        cpu_seconds=[run.cpu_seconds for run in runs],
        turns=turns,
    )


def misses(results: Sequence[Result]) -> list[str]:
    """Where a scanner was not at the rate that both were to have. Pure."""
    return [
        f"{result.place}: {who} scanned {rate:.0f} pages/s instead of {result.scan_rate_pages}"
        for result in results
        if result.set == next(iter(SETS))
        for who, side in (("ksmd", result.ksmd), ("ours", result.ours))
        for rate in [statistics.median(side.rate_pages)]
        if abs(rate / result.scan_rate_pages - 1) > RATE_TOLERANCE
    ]


def _told(side: Slowdown) -> str:
    interval = (
        "" if side.low is None or side.high is None else f" ({side.low:+.1%}, {side.high:+.1%})"
    )
    return f"{side.median:+.1%}{interval}"


def show(results: Sequence[Result]) -> None:
    """Print the table."""
    columns = [
        Column("place", "scanner"),
        Column("set", "set"),
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
            "ksmd": _told(result.ksmd),
            "ours": _told(result.ours),
            "ksmd_rate": number(median(result.ksmd.rate_pages), 0),
            "ours_rate": number(median(result.ours.rate_pages), 0),
            "ksmd_cpu": number(median(result.ksmd.cpu_seconds), 2),
            "ours_cpu": number(median(result.ours.cpu_seconds), 2),
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
    default=20_000,
    show_default=True,
    help="Pages a second, of both regions together.",
)
@click.option(
    "--size", default="256M", show_default=True, callback=parse_size, help="Of each region."
)
def main(*, json_file: Path | None, repeats: int, rate: int, size: int) -> None:
    """Measure how much slower a program gets whose data lie in the caches, while ksmd or engines scan.

    Needs root, and that nobody else uses KSM. There is no bar; exit 1 when a scanner did not scan at the rate.

    A quick look: ./dev bench cache --size 64M --repeats 1
    """
    results: list[Result] = []
    with session(json_file) as progress, ksm.preserved(), many_mappings():
        bench = Bench(Rig(size, progress), rate)
        facts = {**machine_facts(), "scan_rate_pages": rate, "size_bytes": size}
        for place in PLACES:
            runs: dict[str, list[Run]] = {who: [] for who in SCANNERS}
            for turn in range(repeats):
                label = f"{place} {turn + 1}/{repeats}"
                runs["ksmd"].append(bench.ksmd(f"{label} ksmd", place))
                runs["ours"].append(bench.ours(f"{label} ours", place))
            for name, set_bytes in bench.set_bytes.items():
                record = {"place": place, "set": name, "set_bytes": set_bytes, **facts}
                sides = {who: slowdown(runs[who], name) for who in SCANNERS}
                results.append(msgspec.convert({**record, **sides}, Result, from_attributes=True))
    show(results)
    finish(results, json_file, misses(results))


if __name__ == "__main__":
    run(main, sys.argv[1:], "./dev bench cache")

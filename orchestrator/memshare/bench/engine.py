# SPDX-License-Identifier: GPL-2.0-or-later
"""`./dev bench engine`: CPU time until the standard mix is shared, ours against ksmd. Needs root.

Two processes hold a region each: a quarter zero pages, a quarter common, half unique
(tests/bench/region-worker.c). For each case and repeat, in this order, with fresh processes:

ours   engines through a real broker, background threads, no scan rate limit
off    the same in mode off, for the same time: what ours costs anyway, subtracted
ksmd   KSM with its knobs as in KSM_KNOBS

Without busy threads all that shares has one core, and so has ksmd, which is one thread; this program has the
others. Engines at work on two cores at once would pay for each other's use of the memory, and the figure would be the
machine's. With busy threads, whose point is that other cores run the same process, all go where they like.

Ours and ksmd both end at 99% of the oracle, by distinct page frames, and are charged up to the end of
the look that saw it. A look holds the locks of the address spaces, for which an engine that changes
mappings would spin; so who merges is asked first, and there is no look before it claims as much. A read of
both regions follows, which checks their contents. docs/benchmarks says what is charged to whom.
"""

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NamedTuple

import click
import msgspec

from memshare.bench.cores import alone_on_one
from memshare.bench.frames import FrameCounter
from memshare.bench.progress import Progress
from memshare.bench.rig import (
    Rig,
    finish,
    machine_facts,
    many_mappings,
    number,
    oracle_pages,
    parse_size,
    session,
    total_pages,
)
from memshare.bench.workers import Worker
from memshare.cli import run
from memshare.clients import ksm, procfs
from memshare.errors import MeasurementError
from memshare.render import Column, Unit, render_table

CASES = ("runs16", "scattered")
BAR_RATIO = {"runs16": 0.25}
BAR_SIZE_BYTES = 1 << 30
TARGET_RATIO = 0.99
LIMIT_SECONDS = 180.0

# Full speed, and use_zero_pages as the kernel has it unless asked for: with it ksmd settles zero pages
# without its trees.
KSM_KNOBS = {
    "advisor_mode": "none",
    "pages_to_scan": "100000",
    "sleep_millisecs": "0",
    "use_zero_pages": "0",
}

# The next question comes after half the time that the last two answers predict, within these bounds.
ASK_SECONDS_MIN, ASK_SECONDS_MAX = 0.015, 0.1


class Reached(NamedTuple):
    """How one run ended."""

    cpu_seconds: float
    wall_seconds: float
    oracle_fraction: float
    reread_seconds: float


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One case. Figures are medians over the repeats; oracle_fraction is the least of all runs.

    In a case that did not converge the other figures are null. The raw lists have one entry a repeat.
    """

    case: str
    busy: bool
    ours_cpu_seconds: float | None
    ksmd_cpu_seconds: float | None
    cpu_ratio: float | None
    oracle_fraction: float
    reread_seconds_ours: float | None
    reread_seconds_ksm: float | None
    ours: list[Reached]
    off_cpu_seconds: list[float]
    ksmd: list[Reached]
    size_bytes: int
    ksm_use_zero_pages: bool
    kernel: str
    cpu_model: str
    load_before: float
    one_core: bool


class NotConvergedError(MeasurementError):
    """A run did not reach the oracle in time."""

    def __init__(self, who: str, fraction: float, words: str = "") -> None:
        """Keep how far it came."""
        super().__init__(
            f"{who} reached {fraction:.1%} of the oracle in {LIMIT_SECONDS:.0f} s{words}"
        )
        self.fraction = fraction


class Bench:
    """What all runs have in common."""

    def __init__(self, size_bytes: int, progress: Progress, *, zero_pages: bool) -> None:
        """Remember what to run and how."""
        self._rig = Rig(size_bytes, progress)
        self._progress = progress
        self._ksmd = ksm.ksmd_pid()
        self._knobs = {**KSM_KNOBS, "use_zero_pages": str(int(zero_pages))}

    def ours(self, label: str, case: str, *, busy: bool) -> Reached:
        """Share with engines and a broker until the oracle is reached."""
        with self._rig.group(label, case, busy=busy) as group:
            regions = [worker.region for worker in group.workers]
            with (
                self._cores(group.pids, busy=busy),
                FrameCounter(regions, group.broker_pid) as frames,
            ):
                before_ns = group.cpu_ns()
                group.start("content")
                try:
                    reached = self._watch(
                        label,
                        frames,
                        group.workers,
                        lambda: group.cpu_ns() - before_ns,
                        lambda: pages_claimed(group.workers),
                    )
                except NotConvergedError as error:
                    words = "".join(f"; {worker.stats()}" for worker in group.workers)
                    raise NotConvergedError("ours", error.fraction, words) from None
            for worker in group.workers:
                worker.ask("hold")
            return reached._replace(reread_seconds=reread(group.workers))

    def off(self, label: str, case: str, wall_seconds: float, *, busy: bool) -> float:
        """Return what engines in mode off cost in that time."""
        with (
            self._rig.group(label, case, busy=busy) as group,
            self._cores(group.pids, busy=busy),
        ):
            before_ns = group.cpu_ns()
            group.start("off")
            self._progress.update(f"{label}: {wall_seconds:.1f} s in mode off")
            time.sleep(wall_seconds)
            return (group.cpu_ns() - before_ns) / 1e9

    def ksmd(self, label: str, case: str, *, busy: bool) -> Reached:
        """Let ksmd merge until the oracle is reached."""
        with self._rig.workers(label, case, busy=busy) as pair:
            ksm.refuse_other_marks()
            ksm.write_knobs({**self._knobs, "run": ksm.RUN_STOP})
            for worker in pair:
                worker.ask("ksm")
            before_ns = procfs.cpu_ns(self._ksmd)
            with (
                self._cores([self._ksmd], busy=busy),
                FrameCounter([worker.region for worker in pair], None) as frames,
            ):
                ksm.write_knobs({"run": ksm.RUN_MERGE})
                try:
                    reached = self._watch(
                        label,
                        frames,
                        pair,
                        lambda: procfs.cpu_ns(self._ksmd) - before_ns,
                        ksm.pages_claimed,
                    )
                except NotConvergedError as error:
                    raise NotConvergedError("ksmd", error.fraction) from None
                finally:
                    ksm.write_knobs({"run": ksm.RUN_STOP})
            return reached._replace(reread_seconds=reread(pair))

    def _cores(self, pids: Sequence[int], *, busy: bool) -> AbstractContextManager[None]:
        return nullcontext() if busy else alone_on_one(pids)

    def _watch(
        self,
        label: str,
        frames: FrameCounter,
        pair: Sequence[Worker],
        cpu_ns: Callable[[], int],
        claim: Callable[[], int],
    ) -> Reached:
        """Ask until the target is claimed, and look until it is reached; the caller adds the time to read."""
        pages = total_pages(pair)
        oracle = oracle_pages(pages)
        start = time.monotonic()
        last_fraction, last_seconds = 0.0, 0.0
        while True:
            fraction = claim() / oracle
            if fraction >= TARGET_RATIO:
                fraction = (pages - frames.count()) / oracle
            cpu_seconds, seconds = cpu_ns() / 1e9, time.monotonic() - start
            self._progress.update(
                f"{label}: {fraction:6.1%} of the oracle, {cpu_seconds:.2f} s CPU"
            )
            if fraction >= TARGET_RATIO:
                return Reached(cpu_seconds, seconds, fraction, 0.0)
            if seconds > LIMIT_SECONDS:
                raise NotConvergedError("it", (pages - frames.count()) / oracle)
            speed = (fraction - last_fraction) / max(seconds - last_seconds, 1e-6)
            last_fraction, last_seconds = fraction, seconds
            wait = (TARGET_RATIO - fraction) / speed / 2 if speed > 0 else ASK_SECONDS_MAX
            time.sleep(min(max(wait, ASK_SECONDS_MIN), ASK_SECONDS_MAX))


def pages_claimed(pair: Sequence[Worker]) -> int:
    """How many pages the engines say are freed: of common ones, one side's are left."""
    stats = [worker.stats() for worker in pair]
    shared = sum(int(one["shared_pages"]) for one in stats)
    return sum(int(one["zero_pages"]) for one in stats) + shared * (len(pair) - 1) // len(pair)


def reread(pair: Sequence[Worker]) -> float:
    """Let one process after the other read its region; the time of both together."""
    return sum(int(worker.ask("read")) for worker in pair) / 1e9


def measure(bench: Bench, case: str, busy: bool, repeats: int, facts: dict[str, object]) -> Result:
    """All repeats of one case; the first run that does not converge ends it."""
    ours: list[Reached] = []
    off: list[float] = []
    ksmd: list[Reached] = []
    failed: list[float] = []
    for repeat in range(repeats):
        label = f"{case}{' busy' if busy else ''} {repeat + 1}/{repeats}"
        try:
            ours.append(bench.ours(f"{label} ours", case, busy=busy))
            off.append(bench.off(f"{label} off", case, ours[-1].wall_seconds, busy=busy))
            ksmd.append(bench.ksmd(f"{label} ksmd", case, busy=busy))
        except NotConvergedError as error:
            print(f"{label}: {error}", file=sys.stderr)
            failed.append(error.fraction)
            break
    net = [reached.cpu_seconds - base for reached, base in zip(ours, off, strict=False)]
    good = not failed
    ours_cpu = statistics.median(net) if good else None
    ksmd_cpu = statistics.median(run.cpu_seconds for run in ksmd) if good else None
    return msgspec.convert(
        {
            "case": case,
            "busy": busy,
            "ours_cpu_seconds": ours_cpu,
            "ksmd_cpu_seconds": ksmd_cpu,
            "cpu_ratio": ours_cpu / ksmd_cpu if ours_cpu is not None and ksmd_cpu else None,
            "oracle_fraction": min([run.oracle_fraction for run in [*ours, *ksmd]] + failed),
            "reread_seconds_ours": statistics.median(r.reread_seconds for r in ours)
            if good
            else None,
            "reread_seconds_ksm": statistics.median(r.reread_seconds for r in ksmd)
            if good
            else None,
            "ours": ours,
            "off_cpu_seconds": off,
            "ksmd": ksmd,
            "one_core": not busy,
            **facts,
        },
        Result,
    )


def misses(results: Sequence[Result]) -> list[str]:
    """What is not as it must be. Pure."""
    found = []
    for result in results:
        name = f"{result.case}{' busy' if result.busy else ''}"
        bar = BAR_RATIO.get(result.case)
        if result.cpu_ratio is None:
            found.append(f"{name}: stopped at {result.oracle_fraction:.1%} of the oracle")
        elif bar and result.size_bytes == BAR_SIZE_BYTES and result.cpu_ratio > bar:
            found.append(f"{name}: cpu_ratio {result.cpu_ratio:.3f} is above its bar, {bar}")
    return found


def show(results: Sequence[Result]) -> None:
    """Print the table."""
    columns = [
        Column("case", "case"),
        Column("busy", "busy"),
        Column("ours", "ours CPU s", Unit.COUNT),
        Column("ksmd", "ksmd CPU s", Unit.COUNT),
        Column("ratio", "ratio", Unit.COUNT),
        Column("bar", "bar", Unit.COUNT),
        Column("fraction", "of oracle", Unit.COUNT),
        Column("reread_ours", "reread ours s", Unit.COUNT),
        Column("reread_ksm", "reread ksm s", Unit.COUNT),
    ]

    records = [
        {
            "case": result.case,
            "busy": "yes" if result.busy else "no",
            "ours": number(result.ours_cpu_seconds, 2),
            "ksmd": number(result.ksmd_cpu_seconds, 2),
            "ratio": number(result.cpu_ratio, 3),
            "bar": number(BAR_RATIO.get(result.case), 2),
            "fraction": f"{result.oracle_fraction:.1%}",
            "reread_ours": number(result.reread_seconds_ours, 3),
            "reread_ksm": number(result.reread_seconds_ksm, 3),
        }
        for result in results
    ]
    render_table(columns, records, sys.stdout)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--case", "cases", type=click.Choice(CASES), multiple=True, help="Default: both.")
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True)
@click.option("--size", default="1G", show_default=True, callback=parse_size, help="Of a region.")
@click.option("--ksm-zero-pages", is_flag=True, help="Let ksmd use the kernel's zero page.")
def main(
    *, json_file: Path | None, cases: Sequence[str], repeats: int, size: int, ksm_zero_pages: bool
) -> None:
    """Measure the engine against ksmd; exit 1 when a bar is missed or a case did not converge."""
    results: list[Result] = []
    with session(json_file) as progress, ksm.preserved(), many_mappings():
        facts = {**machine_facts(), "size_bytes": size, "ksm_use_zero_pages": ksm_zero_pages}
        bench = Bench(size, progress, zero_pages=ksm_zero_pages)
        for case in cases or CASES:
            for busy in (False, True):
                results.append(measure(bench, case, busy, repeats, facts))
    show(results)
    finish(results, json_file, misses(results))


if __name__ == "__main__":
    run(main, sys.argv[1:], "./dev bench engine")

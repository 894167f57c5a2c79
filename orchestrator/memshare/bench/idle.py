# SPDX-License-Identifier: GPL-2.0-or-later
"""`./dev bench idle`: what it costs to look once more at memory that is shared already. Needs root.

Two processes hold half of the size each, filled with the standard mix and merged until nothing moves
any more. Then passes are counted, ours by the engines and the broker, the kernel's by ksmd, in one
run:

idle      nothing was written since the last pass
written   1% of all pages, drawn anew each time, got contents unlike all others since the last pass

ksmd works at full speed with its knobs as in `engine`, smart_scan as the host has it, a full scan at a
time. With smart_scan it looks at a page that never merges only once in nine scans in the long run: so
nine passes are a whole turn, and ksmd makes as many scans before as it takes to get there. What smart_scan
saves it is in the figures.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import click
import msgspec

from memshare.bench import passes
from memshare.bench.engine import KSM_KNOBS
from memshare.bench.frames import FrameCounter
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
from memshare.clients import ksm
from memshare.errors import MeasurementError
from memshare.render import Column, Unit, render_table

MIXES = ("runs16", "scattered")
CASES = ("idle", "written")
BAR_RATIO = {"idle": 1 / 200, "written": 1 / 50}
BAR_SIZE_BYTES = 4 << 30
WRITTEN_PERMILLE = 10
CONVERGED_RATIO = 0.99
#: Written passes that do not count: what is written before one is hashed by the next.
WARM_PASSES = 2
#: Passes after which the engine visits blocks now and then only, as smart_scan does pages; it takes 8 passes
#: to come round, and so 9 are more than a turn of both.
IDLE_WARM_PASSES = 26
#: Scans after which smart_scan leaves a page out as long as it ever does.
KSMD_WARM_SCANS = 13


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One case: means over the passes, and each pass."""

    case: str
    mix: str
    ours_cpu_seconds: float
    ksmd_cpu_seconds: float
    cpu_ratio: float
    oracle_fraction_ours: float
    oracle_fraction_ksmd: float
    ours: list[passes.Round]
    ksmd: list[float]
    size_bytes: int
    ksm_smart_scan: str | None
    kernel: str
    cpu_model: str
    load_before: float


def write(workers: Sequence[Worker]) -> None:
    """Give some pages contents unlike all others."""
    for worker in workers:
        worker.ask(f"write {WRITTEN_PERMILLE}")


class Bench:
    """Makes the passes."""

    def __init__(self, rig: Rig, mix: str, count: int) -> None:
        """Remember what to do."""
        self._rig, self._mix, self._count = rig, mix, count

    def ours(self) -> tuple[float, dict[str, list[passes.Round]]]:
        """Fraction of the oracle when converged; rounds of passes by case."""
        with self._rig.group(f"{self._mix} ours", self._mix) as group:
            group.start("content", by_hand=True)
            fraction = passes.settle(self._rig, group, f"{self._mix} ours")
            self._rig.progress.update(f"{self._mix} ours: {self._count} passes of each case")
            for _ in range(IDLE_WARM_PASSES):
                passes.one_round(group)
            found = {"idle": [passes.one_round(group) for _ in range(self._count)]}
            rounds = []
            for _ in range(WARM_PASSES + self._count):
                write(group.workers)
                rounds.append(passes.one_round(group))
            found["written"] = rounds[WARM_PASSES:]
            for worker in group.workers:
                worker.ask("read")
        return fraction, found

    def ksmd(self) -> tuple[float, dict[str, list[float]]]:
        """Do the same with ksmd: CPU seconds of each full scan."""
        label = f"{self._mix} ksmd"
        with self._rig.workers(label, self._mix) as pair:
            ksm.refuse_other_marks()
            scans = ksm.FullScans(
                {name: KSM_KNOBS[name] for name in ("advisor_mode", "use_zero_pages")}
            )
            for worker in pair:
                worker.ask("ksm")
            for scan in range(KSMD_WARM_SCANS):
                self._rig.progress.update(f"{label}: scan {scan + 1} of {KSMD_WARM_SCANS}")
                scans.step()
            pages = total_pages(pair)
            with FrameCounter([worker.region for worker in pair], None) as frames:
                fraction = (pages - frames.count()) / oracle_pages(pages)
            self._rig.progress.update(f"{label}: {self._count} scans of each case")
            found = {"idle": [scans.step() / 1e9 for _ in range(self._count)]}
            written = []
            for _ in range(WARM_PASSES + self._count):
                write(pair)
                written.append(scans.step() / 1e9)
            found["written"] = written[WARM_PASSES:]
        return fraction, found


def mean(values: Sequence[float]) -> float:
    """Mean of what is at least one value. Pure."""
    return sum(values) / len(values)


def measure(bench: Bench, mix: str, facts: dict[str, object]) -> list[Result]:
    """Both cases of one mix."""
    ours_fraction, ours = bench.ours()
    ksmd_fraction, ksmd = bench.ksmd()
    results = []
    for case in CASES:
        ours_cpu = mean([each.cpu_seconds for each in ours[case]])
        ksmd_cpu = mean(ksmd[case])
        if not ksmd_cpu:
            raise MeasurementError("ksmd took no time for a full scan")
        results.append(
            msgspec.convert(
                {
                    "case": case,
                    "mix": mix,
                    "ours_cpu_seconds": ours_cpu,
                    "ksmd_cpu_seconds": ksmd_cpu,
                    "cpu_ratio": ours_cpu / ksmd_cpu,
                    "oracle_fraction_ours": ours_fraction,
                    "oracle_fraction_ksmd": ksmd_fraction,
                    "ours": ours[case],
                    "ksmd": ksmd[case],
                    **facts,
                },
                Result,
            )
        )
    return results


def misses(results: Sequence[Result]) -> list[str]:
    """What is not as it must be. Pure."""
    found = []
    for result in results:
        name = f"{result.mix} {result.case}"
        for who, fraction in (
            ("ours", result.oracle_fraction_ours),
            ("ksmd", result.oracle_fraction_ksmd),
        ):
            if fraction < CONVERGED_RATIO:
                found.append(f"{name}: {who} stopped at {fraction:.1%} of the oracle")
        bar = BAR_RATIO[result.case]
        if result.size_bytes >= BAR_SIZE_BYTES and result.cpu_ratio > bar:
            found.append(f"{name}: cpu_ratio {result.cpu_ratio:.4f} is above its bar, {bar}")
    return found


def show(results: Sequence[Result]) -> None:
    """Print the table."""
    columns = [
        Column("mix", "mix"),
        Column("case", "case"),
        Column("ours", "ours CPU ms a pass", Unit.COUNT),
        Column("ksmd", "ksmd CPU ms a scan", Unit.COUNT),
        Column("ratio", "ratio", Unit.COUNT),
        Column("bar", "bar", Unit.COUNT),
        Column("fraction", "of oracle", Unit.COUNT),
    ]
    records = [
        {
            "mix": result.mix,
            "case": result.case,
            "ours": number(result.ours_cpu_seconds * 1e3, 2),
            "ksmd": number(result.ksmd_cpu_seconds * 1e3, 1),
            "ratio": number(result.cpu_ratio, 4),
            "bar": number(BAR_RATIO[result.case], 4),
            "fraction": f"{min(result.oracle_fraction_ours, result.oracle_fraction_ksmd):.1%}",
        }
        for result in results
    ]
    render_table(columns, records, sys.stdout)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--mix", "mixes", type=click.Choice(MIXES), multiple=True, help="Default: both.")
@click.option(
    "--passes",
    "count",
    type=click.IntRange(1),
    default=9,
    show_default=True,
    help="That count; 9 are a whole turn of ksmd's smart_scan.",
)
@click.option(
    "--size",
    default="4G",
    show_default=True,
    callback=parse_size,
    help="Of both regions together; the bars hold from 4G on.",
)
def main(*, json_file: Path | None, mixes: Sequence[str], count: int, size: int) -> None:
    """Measure a pass over memory that is shared already: ours against a full scan of ksmd.

    Needs root, and that nobody else uses KSM; takes a few minutes and as much free memory as --size
    and a half. Exit 1 when a bar is missed or a side did not converge.

    A quick look: ./dev bench idle --size 64M --mix runs16
    """
    results: list[Result] = []
    with session(json_file) as progress, ksm.preserved(), many_mappings():
        facts = {
            **machine_facts(),
            "size_bytes": size,
            "ksm_smart_scan": ksm.read_knobs().get("smart_scan"),
        }
        rig = Rig(size // 2, progress)
        for mix in mixes or MIXES:
            results += measure(Bench(rig, mix, count), mix, facts)
    show(results)
    finish(results, json_file, misses(results))


if __name__ == "__main__":
    run(main, sys.argv[1:], "./dev bench idle")

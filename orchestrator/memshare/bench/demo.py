# SPDX-License-Identifier: GPL-2.0-or-later
"""The main job, `./dev demo`: the plan `quick`, its report, and what sharing came to, each figure checked.

Four Debian guests, with sharing off, with the kernel's KSM at full speed, and with memshare; they verify their memory
all the while. Leaves out/demo/result.json, which is of the moment when memshare had converged, and beside it the
experiment with report.html.
"""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import click
import msgspec

from memshare.bench.rig import SOURCE
from memshare.cli import bench_report, bench_run, run
from memshare.errors import MeasurementError
from memshare.experiment import figures, recording
from memshare.experiment.plan import EngineKind
from memshare.experiment.record import OracleReading
from memshare.experiment.recording import Recording, Run

PLAN = "quick"
PHASE = "converge"
ORACLE_RATIO_BAR = 0.80
IDENTITY_RATIO_BAR = 0.02


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What result.json holds; memory_used_before_bytes and overcommit_ratio_off are of the run without sharing."""

    guests: int
    ram_given_bytes: int
    memory_used_before_bytes: int
    memory_used_bytes: int
    frames_freed_bytes: int
    oracle_bytes: int
    saved_zero_bytes: int
    saved_content_bytes: int
    overhead_bytes: int
    overcommit_ratio_off: float
    overcommit_ratio: float
    scan_cpu_seconds: float
    integrity: str


def converged(run: Run) -> OracleReading:
    """Return what was counted at the end of the phase in which an engine has time to converge."""
    counted = [reading for reading in run.oracles if reading.phase == PHASE]
    if not counted:
        raise MeasurementError(f"run with {run.result.engine}: nothing was counted in {PHASE}")
    return counted[-1]


def the_run(recorded: Recording, engine: EngineKind) -> Run:
    """Return the one run of that engine."""
    runs = recorded.of(engine)
    if len(runs) != 1:
        raise MeasurementError(f"{len(runs)} finished runs with {engine}, not one")
    return runs[0]


def make_result(off: Run, shared: Run) -> Result:
    """Put the figures together; MeasurementError where one is missing or page frames and PSS disagree. Pure."""
    before, now = converged(off), converged(shared)
    missing = [
        name
        for name in ("saved_zero_bytes", "saved_content_bytes", "pss_bytes", "overhead_bytes")
        if getattr(now, name) is None
    ]
    if missing:
        raise MeasurementError(f"not counted: {', '.join(missing)}")
    assert now.overhead_bytes is not None and now.pss_bytes is not None
    assert now.saved_zero_bytes is not None and now.saved_content_bytes is not None
    if abs(now.pss_bytes - now.frames_bytes) > IDENTITY_RATIO_BAR * now.frames_bytes:
        raise MeasurementError(
            f"by PSS {now.pss_bytes} bytes are behind guests' RAM, by page frames {now.frames_bytes}"
        )
    last = shared.samples[-1]
    used = now.frames_bytes + now.overhead_bytes
    wrong = [found for found in map(figures.integrity, (off, shared)) if found != "ok"]
    return Result(
        guests=last.guests_up,
        ram_given_bytes=last.ram_given_bytes,
        memory_used_before_bytes=before.frames_bytes,
        memory_used_bytes=used,
        frames_freed_bytes=now.freed_bytes,
        oracle_bytes=now.oracle_bytes,
        saved_zero_bytes=now.saved_zero_bytes,
        saved_content_bytes=now.saved_content_bytes,
        overhead_bytes=now.overhead_bytes,
        overcommit_ratio_off=round(last.ram_given_bytes / before.frames_bytes, 3),
        overcommit_ratio=round(last.ram_given_bytes / used, 3),
        scan_cpu_seconds=round(figures.cpu_at(shared.samples, now.seconds), 2),
        integrity="; ".join(wrong) or "ok",
    )


def misses(result: Result) -> list[str]:
    """What the result falls short of. Pure."""
    problems = []
    if result.integrity != "ok":
        problems.append(f"integrity: {result.integrity}")
    if result.frames_freed_bytes < ORACLE_RATIO_BAR * result.oracle_bytes:
        share = result.frames_freed_bytes / result.oracle_bytes
        problems.append(f"freed {share:.1%} of what could be freed, not {ORACLE_RATIO_BAR:.0%}")
    claimed = result.saved_zero_bytes + result.saved_content_bytes
    off_by = abs(claimed - result.frames_freed_bytes)
    if off_by > IDENTITY_RATIO_BAR * result.frames_freed_bytes:  # I10
        problems.append(
            f"the engines claim {claimed} bytes saved, page tables show {result.frames_freed_bytes}"
        )
    return problems


def lines(result: Result) -> Sequence[str]:
    """What people read of it. Pure."""
    return (
        f"{result.guests} guests with {result.ram_given_bytes >> 20} MiB of RAM: "
        f"{result.memory_used_before_bytes >> 20} MiB used without sharing, "
        f"{result.memory_used_bytes >> 20} MiB with it, {result.overhead_bytes >> 20} of them its cost",
        f"overcommit ratio {result.overcommit_ratio_off:.2f}x, {result.overcommit_ratio:.2f}x",
        f"freed {result.frames_freed_bytes / max(1, result.oracle_bytes):.1%} of what exact sharing could free, "
        f"{result.scan_cpu_seconds:.1f} s of CPU; integrity: {result.integrity}",
    )


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--output", type=click.Path(path_type=Path), default=SOURCE / "out" / "demo")
def main(output: Path) -> None:
    """Run the demo, six minutes; exit 0 only when integrity holds and the figures meet their bars. As root.

    What an earlier demo left in the output folder is replaced.
    """
    folder, result_file = output / "experiment", output / "result.json"
    result_file.unlink(missing_ok=True)  # an old one must not pass for this run's
    shutil.rmtree(folder, ignore_errors=True)
    for command, arguments in ((bench_run, [PLAN, "--output", folder]), (bench_report, [folder])):
        command.command.main([str(word) for word in arguments], standalone_mode=False)
    recorded = recording.read(folder)
    result = make_result(the_run(recorded, EngineKind.OFF), the_run(recorded, EngineKind.MEMSHARE))
    result_file.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")
    print("\n".join([*lines(result), f"written: {result_file}", f"report: {folder}/report.html"]))
    if problems := misses(result):
        raise MeasurementError("; ".join(problems))


if __name__ == "__main__":
    run(main, sys.argv[1:], "./dev demo")

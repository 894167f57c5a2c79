# SPDX-License-Identifier: GPL-2.0-or-later
"""`./dev bench wait`: how long a write takes while the memory it goes to is being merged.

One process holds a region, shares it within itself and writes to it (tests/bench/writer-wait.c):

off    the engine is in mode off: what the machine does by itself
idle   nothing else runs
hogs   four processes spin
quota  the process has 20% of a core (needs root and the cpu controller)

Write latencies are those of all writes; "waits" are the ones that took 20 us or more.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import msgspec

from memshare.bench.rig import SOURCE, end_on_signals, finish, machine_facts, parse_size
from memshare.cli import run
from memshare.errors import HostError, MeasurementError

HOGS = 4
QUOTA_PERCENT = 20
PERIOD_US = 100_000
CASES = ("off", "idle", "hogs", "quota")
#: Case -> quantile -> nanoseconds.
BARS = {"idle": {"p999": 200_000, "max": 1_000_000}, "hogs": {"p999": 500_000}}
LATE_BUCKET = 9  # of the engine's histogram: 256 us and more
CGROUP = Path("/sys/fs/cgroup")


class Quantiles(msgspec.Struct, frozen=True, kw_only=True):
    """Of so many writes, in nanoseconds."""

    count: int
    p50: int
    p99: int
    p999: int
    p9999: int
    max: int


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One case; ``window_time_ns`` is the engine's own histogram."""

    case: str
    rounds: int
    spent_ns: int
    windows: int
    slept_faults: int
    merged_pages: int
    zeroed_pages: int
    compare_failures: int
    writes: Quantiles
    waits: Quantiles
    window_time_ns: list[int]
    size_bytes: int
    kernel: str
    cpu_model: str
    load_before: float


@contextmanager
def quota_group() -> Iterator[Path]:
    """A control group that may use a part of a core; gives the file that takes processes."""
    is_v1 = (CGROUP / "cpu" / "cpu.cfs_quota_us").exists() or (CGROUP / "cpu" / "tasks").exists()
    group = (CGROUP / "cpu" if is_v1 else CGROUP) / f"memshare-wait-{os.getpid()}"
    quota_us = PERIOD_US * QUOTA_PERCENT // 100
    try:
        group.mkdir()
        try:
            if is_v1:
                (group / "cpu.cfs_period_us").write_text(str(PERIOD_US))
                (group / "cpu.cfs_quota_us").write_text(str(quota_us))
            else:
                (group / "cpu.max").write_text(f"{quota_us} {PERIOD_US}")
            yield group / "cgroup.procs"
        finally:
            group.rmdir()
    except OSError as error:
        raise HostError(f"{group}: {(error.strerror or '').lower()}: no CPU quota") from error


def measure(program: Path, case: str, seconds: int, facts: dict[str, Any]) -> Result:
    """Run the program for one case."""
    command: list[str | Path] = [
        program, str(seconds), str(facts["size_bytes"]), "off" if case == "off" else "engine",
        str(HOGS if case == "hogs" else 0),
    ]  # fmt: skip
    if case == "quota":
        with quota_group() as tasks:
            output = execute([*command, tasks])
    else:
        output = execute(command)
    return msgspec.convert({"case": case, **msgspec.json.decode(output), **facts}, Result)


def execute(command: Sequence[str | Path]) -> bytes:
    """Run it to its end."""
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        raise MeasurementError(f"writer-wait: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


def misses(results: Sequence[Result]) -> list[str]:
    """Bars that were missed."""
    return [
        f"{result.case}: {quantile} of a write {getattr(result.writes, quantile) / 1000:.0f} us,"
        f" more than {bar_ns / 1000:.0f}"
        for result in results
        for quantile, bar_ns in BARS.get(result.case, {}).items()
        if getattr(result.writes, quantile) > bar_ns
    ]


def show(result: Result) -> None:
    """One line."""
    writes, late = result.writes, sum(result.window_time_ns[LATE_BUCKET:])
    print(
        f"{result.case:6} us: p50 {writes.p50 / 1000:.1f}  p99 {writes.p99 / 1000:.1f}"
        f"  p99.9 {writes.p999 / 1000:.1f}  max {writes.max / 1000:.1f}"
        f"  ({writes.count} writes, {result.waits.count} waits,"
        f" {result.windows} windows, {late} late; load {result.load_before})",
        flush=True,
    )


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--case", "cases", type=click.Choice(CASES), multiple=True, help="Default: all.")
@click.option("--seconds", type=click.IntRange(1), default=10, show_default=True, help="Of a case.")
@click.option(
    "--size", default="64M", show_default=True, callback=parse_size, help="Of the region."
)
def main(*, json_file: Path | None, cases: Sequence[str], seconds: int, size: int) -> None:
    """Measure what a writer waits; exit 1 when a bar is missed."""
    end_on_signals()
    build = Path(os.environ.get("MEMSHARE_BUILD", SOURCE / "build"))
    program = build / "tests" / "bench" / "writer-wait"
    if not program.exists():
        raise HostError(f"{program}: not there; run ./dev build")
    if json_file:
        json_file.unlink(missing_ok=True)  # an old one must not pass for this run's
    results: list[Result] = []
    for case in cases or CASES:
        results.append(measure(program, case, seconds, {**machine_facts(), "size_bytes": size}))
        show(results[-1])
    finish(results, json_file, misses(results))


if __name__ == "__main__":
    run(main, sys.argv[1:], "./dev bench wait")

# SPDX-License-Identifier: GPL-2.0-or-later
"""The one table that a plan ends with: how much each run used, and how near to the oracle it came."""

from collections.abc import Sequence
from pathlib import Path

from memshare.experiment.record import (
    OracleReading,
    RunFolder,
    RunResult,
    Sample,
    read_lines,
)
from memshare.render import Column, Record, Unit

COLUMNS = (
    Column("run", "RUN"),
    Column("ended", "ENDED"),
    Column("guests", "GUESTS", Unit.COUNT),
    Column("given", "RAM GIVEN", Unit.BYTES),
    Column("used", "USED", Unit.BYTES),
    Column("ratio", "OVERCOMMIT"),
    Column("oracle", "OF ORACLE"),
    Column("integrity", "INTEGRITY"),
)


def rows(folder: Path, results: Sequence[RunResult]) -> list[Record]:
    """Return a row for each run: of a ladder's last rung, else of the last second."""
    return [_row(RunFolder(folder, result.repeat, result.engine), result) for result in results]


def _row(place: RunFolder, result: RunResult) -> Record:
    samples = read_lines(place.samples, Sample)
    oracles = read_lines(place.oracles, OracleReading)
    guests, given, used = 0, 0, 0
    if result.steps:
        step = result.steps[-1]
        guests, given, used = step.guests, step.ram_given_bytes, step.used_bytes
    elif samples:
        last = samples[-1]
        guests, given, used = last.guests_up, last.ram_given_bytes, last.used_bytes
    oracle = oracles[-1] if oracles else None
    return {
        "run": place.path.name,
        "ended": result.ended,
        "guests": guests,
        "given": given,
        "used": used,
        "ratio": f"{given / used:.2f}x" if used else None,
        "oracle": f"{oracle.freed_bytes / oracle.oracle_bytes:.1%}"
        if oracle and oracle.oracle_bytes
        else None,
        "integrity": result.integrity,
    }

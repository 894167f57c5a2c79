# SPDX-License-Identifier: GPL-2.0-or-later
"""All that an experiment's folder holds, read and checked. record.py says what lies where."""

import itertools
from pathlib import Path

import msgspec

from memshare.errors import UsageError
from memshare.experiment import plan
from memshare.experiment.plan import EngineKind, Plan
from memshare.experiment.record import (
    Experiment,
    GuestReading,
    OracleReading,
    RunFolder,
    RunResult,
    Sample,
    read_file,
    read_lines,
)

#: How a run ends that came to its end.
ENDS = ("finished", "budget")


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """A run that has come to its end, with at least one sample; all in the order of time."""

    result: RunResult
    samples: list[Sample]
    readings: list[GuestReading] = []
    oracles: list[OracleReading] = []


class Recording(msgspec.Struct, frozen=True, kw_only=True):
    """A plan and the runs that were made of it. broken: results of those that were broken off, of which no figure is told.
    missing: names of those that were not made.
    """

    plan: Plan
    experiment: Experiment
    runs: list[Run]
    broken: list[RunResult] = []
    missing: list[str] = []

    def of(self, engine: EngineKind) -> list[Run]:
        """All repeats with that engine."""
        return [run for run in self.runs if run.result.engine is engine]


def read_result(folder: RunFolder, repeat: int, engine: EngineKind) -> RunResult:
    """Read how a run ended; raises UsageError."""
    result = read_file(folder.result, RunResult)
    if (result.repeat, result.engine) != (repeat, engine):
        found = f"repeat {result.repeat} with {result.engine}"
        raise UsageError(f"{folder.result}: is of another run, {found}")
    return result


def read_run(folder: RunFolder, result: RunResult) -> Run:
    """Read the lines of a run; raises UsageError."""
    samples = read_lines(folder.samples, Sample)
    if not samples:
        raise UsageError(f"{folder.samples}: no sample")
    run = Run(
        result=result,
        samples=samples,
        readings=read_lines(folder.guests, GuestReading),
        oracles=read_lines(folder.oracles, OracleReading),
    )
    for file, lines in (
        (folder.samples, run.samples),
        (folder.guests, run.readings),
        (folder.oracles, run.oracles),
    ):
        times = [line.seconds for line in lines]
        for number, (earlier, later) in enumerate(itertools.pairwise(times), 2):
            if later < earlier:
                raise UsageError(f"{file}:{number}: time goes back from {earlier} to {later} s")
    return run


def read(folder: Path) -> Recording:
    """Read a folder; raises UsageError that names what is wrong, and where."""
    experiment = read_file(folder / "experiment.json", Experiment)
    steps = plan.load(folder / "plan.toml")
    runs: list[Run] = []
    broken: list[RunResult] = []
    missing: list[str] = []
    for repeat, engine in steps.runs():
        one = RunFolder(folder, repeat, engine)
        if not one.is_finished:
            missing.append(one.path.name)
        elif (result := read_result(one, repeat, engine)).ended in ENDS:
            runs.append(read_run(one, result))
        else:
            broken.append(result)
    if not runs:
        raise UsageError(f"{folder}: no run has finished")
    return Recording(plan=steps, experiment=experiment, runs=runs, broken=broken, missing=missing)

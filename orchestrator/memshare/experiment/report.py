# SPDX-License-Identifier: GPL-2.0-or-later
"""What an experiment comes to: figures of each engine over its repeats, one sentence, and what is to be said against them."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from memshare.experiment import compare
from memshare.experiment.figures import (
    FIGURES,
    MOST,
    Noticed,
    RunFigures,
    figures,
    noticed,
    relative,
    slowdowns,
)
from memshare.experiment.plan import EngineKind, Plan
from memshare.experiment.record import Record, RunResult, write_file
from memshare.experiment.recording import Recording, Run
from memshare.experiment.statistics import LEAST_VALUES, Summary, summarise
from memshare.render import Unit, human, human_bytes, human_seconds

SCHEMA = 1
QUIET_RATIO = 0.2  # of the host's CPUs, before a run did anything: above that others were at work

NAMES = {
    EngineKind.OFF: "sharing off",
    EngineKind.KSM_DEFAULT: "KSM, kernel's defaults",
    EngineKind.KSM_FULL: "KSM, full speed",
    EngineKind.KSM_ADVISOR: "KSM, advisor",
    EngineKind.KSMTUNED: "KSM, ksmtuned",
    EngineKind.MEMSHARE_ZERO: "memshare, zero only",
    EngineKind.MEMSHARE: "memshare",
}

#: The same within a sentence.
PHRASES = {
    EngineKind.OFF: "with sharing off",
    EngineKind.KSM_DEFAULT: "with KSM at the kernel's defaults",
    EngineKind.KSM_FULL: "with KSM at full speed",
    EngineKind.KSM_ADVISOR: "with KSM and its advisor",
    EngineKind.KSMTUNED: "with KSM and ksmtuned",
    EngineKind.MEMSHARE_ZERO: "with memshare on zero pages only",
    EngineKind.MEMSHARE: "with memshare",
}

#: What memshare is held against the other engines in.
TESTED = {
    "overcommit_ratio",
    "overcommit_floor",
    "oracle_fraction",
    "cpu_seconds_to_most",
    "ladder_guests",
}


#: What guests noticed of one engine, by phase and load.
Seen = Mapping[tuple[str, str], Noticed]


class GuestView(Record, frozen=True, kw_only=True):
    """What guests noticed of an engine in a phase. slowdown: less throughput than with sharing off, a value a guest and repeat.
    Where guests did the same before sharing began, each is held against itself then, with sharing off as well: no two boots are
    alike.

    p999_slowdown: by how much p99.9 was longer than with sharing off; None with too few operations on either side.
    """

    noticed: Noticed
    rate: Summary | None
    slowdown: Summary | None
    p999_slowdown: float | None


class EngineReport(Record, frozen=True, kw_only=True):
    """An engine over its repeats. figures: by key of FIGURES; None where no run has it."""

    engine: EngineKind
    name: str
    repeats: int
    figures: dict[str, Summary | None]
    guests: list[GuestView]


class Report(Record, frozen=True, kw_only=True):
    """Everything that is told, as in report.json."""

    schema: int
    headline: str
    plan: Plan
    command: str
    started_utc: str
    host: dict[str, Any]
    engines: list[EngineReport]
    differences: list[compare.Row]
    runs: list[RunFigures]
    broken: list[RunResult]
    missing: list[str]
    caveats: list[str]

    @property
    def is_clean(self) -> bool:
        """Whether every guest found its memory as it should be, in every run."""
        return not self.wrong

    @property
    def wrong(self) -> list[str]:
        """What guests found wrong, and where; of runs that were broken off as well."""
        runs: list[RunFigures | RunResult] = [*self.runs, *self.broken]
        return [
            f"{NAMES[run.engine]}, repeat {run.repeat}: {run.integrity}"
            for run in runs
            if run.integrity != "ok"
        ]

    def find(self, engine: EngineKind) -> EngineReport | None:
        """An engine, if it ran."""
        return next((one for one in self.engines if one.engine is engine), None)

    def best_ksm(self) -> EngineReport | None:
        """The setting of KSM with the highest overcommit ratio."""
        candidates = [
            one
            for one in self.engines
            if one.engine.is_ksm and median(one, "overcommit_ratio") is not None
        ]
        return max(candidates, key=lambda one: median(one, "overcommit_ratio") or 0, default=None)


def mixes_zeros(engine: EngineReport) -> bool:
    """Whether its count of contents has zeros in it, as KSM's has without use_zero_pages."""
    zero, content = (median(engine, f"saved_{kind}_bytes") for kind in ("zero", "content"))
    return zero is None and content is not None


def median(engine: EngineReport, key: str) -> float | None:
    """A figure's median."""
    summary = engine.figures[key]
    return summary.median if summary else None


def build(recording: Recording) -> Report:
    """Make the report. Pure."""
    runs = [figures(recording.plan, run) for run in recording.runs]
    sorted_runs = compare.by_engine(runs)
    seen = {engine: by_phase(recording.of(engine)) for engine in EngineKind}
    # In the plan's order, whatever ran first.
    engines = [
        _engine(recording.plan, engine, sorted_runs[engine], seen[engine], seen[EngineKind.OFF])
        for engine in recording.plan.engines
        if engine in sorted_runs
    ]
    differences = [
        row
        for other in sorted_runs
        if other is not EngineKind.MEMSHARE and EngineKind.MEMSHARE in sorted_runs
        for row in compare.engines(sorted_runs, other, EngineKind.MEMSHARE, TESTED)
        # That something is shared where before nothing could be is no news.
        if row.difference is not None
        and not (other is EngineKind.OFF and row.figure == "oracle_fraction")
    ]
    report = Report(
        schema=SCHEMA,
        headline="",
        plan=recording.plan,
        command=recording.experiment.command,
        started_utc=recording.experiment.started_utc,
        host=recording.experiment.host,
        engines=engines,
        differences=differences,
        runs=runs,
        broken=recording.broken,
        missing=recording.missing,
        caveats=caveats(recording, engines),
    )
    return msgspec.structs.replace(report, headline=headline(report))


def by_phase(runs: Sequence[Run]) -> Seen:
    """What guests noticed in these runs, by phase and load."""
    return {(one.phase, one.load): one for one in noticed(runs)}


def _engine(
    plan: Plan, engine: EngineKind, runs: Sequence[RunFigures], seen: Seen, off: Seen
) -> EngineReport:
    return EngineReport(
        engine=engine,
        name=NAMES[engine],
        repeats=len(runs),
        figures={figure.key: summarise(compare.known(runs, figure.key)) for figure in FIGURES},
        guests=[
            view(plan, one, seen, {} if engine is EngineKind.OFF else off) for one in seen.values()
        ],
    )


def view(plan: Plan, one: Noticed, seen: Seen, off: Seen) -> GuestView:
    """Hold what guests noticed against sharing off, and against themselves before it began; off is empty for itself."""
    base, tail = off.get((one.phase, one.load)), None
    slower: list[float] = []
    if base is not None:
        earlier = phase_before(plan, one)
        then, then_off = seen.get((earlier, one.load)), off.get((earlier, one.load))
        if then is not None and then_off is not None:
            slower = slowdowns(relative(base, then_off), relative(one, then))
        else:
            slower = slowdowns(base.rates, one.rates)
        if one.p999_us and base.p999_us:
            tail = one.p999_us / base.p999_us - 1
    return GuestView(
        noticed=one,
        rate=summarise(compare.rates(one)),
        slowdown=summarise(slower),
        p999_slowdown=tail,
    )


def phase_before(plan: Plan, one: Noticed) -> str:
    """The last phase before sharing began in which some guests had that load; "" when this is no later one, or there is none."""
    names = [phase.name for phase in plan.phase]
    if plan.start_phase not in names or one.phase not in names:
        return ""
    start = names.index(plan.start_phase)
    if names.index(one.phase) < start:
        return ""
    found = [phase.name for phase in plan.phase[:start] if one.load in phase.loads]
    return found[-1] if found else ""


def headline(report: Report) -> str:
    """One sentence. memshare if it ran, else the best of those that did; against KSM at its best and sharing off."""
    told = [one for one in report.engines if median(one, "overcommit_ratio") is not None]
    if not told:
        return "No run came to an overcommit ratio."
    ours = report.find(EngineKind.MEMSHARE)
    best = ours if ours in told else max(told, key=lambda one: median(one, "overcommit_ratio") or 0)
    others = [
        _told(other)
        for other in (report.best_ksm(), report.find(EngineKind.OFF))
        if other in told and other is not best
    ]
    against = f", against {' and '.join(others)}" if others else ""
    broken = "" if report.is_clean else " But guests found wrong contents in their memory."
    if report.plan.budget_bytes is not None and report.plan.ladder:
        budget = human_bytes(report.plan.budget_bytes)
        each = f" guests of {human_bytes(report.plan.guests.ram_bytes)}"
        return f"In {budget} of memory there is room for {_told(best, each)}{against}.{broken}"
    given = human_bytes(round(median(best, "ram_given_bytes") or 0))
    used = human_bytes(round(median(best, "used_bytes") or 0))
    phrase = PHRASES[best.engine]
    phrase = phrase[:1].upper() + phrase[1:]
    times = _times(best)
    return f"{phrase}, {given} of guest RAM takes {used} of memory: an overcommit ratio of {times}{against}.{broken}"


def _times(engine: EngineReport) -> str:
    return human(median(engine, "overcommit_ratio"), Unit.TIMES)


def _told(engine: EngineReport, unit: str = "") -> str:
    """What it came to: a ratio, of a ladder guests."""
    guests = median(engine, "ladder_guests")
    if guests is None:
        return f"{_times(engine)} {PHRASES[engine.engine]}"
    return f"{guests:g}{unit} {PHRASES[engine.engine]} ({_times(engine)})"


def caveats(recording: Recording, engines: Sequence[EngineReport]) -> list[str]:
    """What a reader must know before believing a figure."""
    plan = recording.plan
    results = [run.result for run in recording.runs]
    said = []
    if plan.guests.accel == "tcg":
        said.append(
            "Guests ran under TCG, which emulates each of their instructions. Distorted by it: boot times, guests' "
            "throughput, latency and stalls, so every slowdown, and CPU time where guests and scanning wait for the same "
            "cores and caches. Memory used has TCG's buffers of translated code in it, which KVM has not, so overcommit ratios "
            "are on the low side. Not distorted: what was saved, and fractions of the oracle."
        )
    said += [f"Not in here, as it did not finish: {name}." for name in recording.missing]
    said += [
        f"{NAMES[result.engine]}, repeat {result.repeat}, was broken off and is not counted: {result.ended}."
        for result in recording.broken
    ]
    if plan.repeats < LEAST_VALUES:
        said.append(
            f"{plan.repeats} {'repeats are' if plan.repeats > 1 else 'repeat is'} too few for a 95% interval, which takes "
            f"{LEAST_VALUES}; where an engine has several, the least and the greatest are shown instead. Slowdowns count each "
            "guest of each repeat, though guests of one run are not independent of each other."
        )
    stop = max(result.longest_oracle_stop_seconds for result in results)
    coarse = f"each {plan.oracle_seconds:g} s, so times to {MOST:.0%} are that coarse, and never too short"
    said.append(
        f"The oracle was taken {'for each guest that was added' if plan.ladder else coarse}. Guests, and their clocks, stood "
        f"still for it, for at most {human_seconds(stop)}; what they report does not include it."
    )
    busy = [ratio for one in results if (ratio := one.busy_before_ratio or 0.0) > QUIET_RATIO]
    if busy:
        said.append(
            f"Others were at work on this host when {len(busy)} of {len(results)} runs started: they kept up to "
            f"{max(busy):.0%} of its CPUs busy."
        )
    if any(engine.engine.is_ksm for engine in engines):
        said.append(
            "KSM splits huge pages, and zero pages of the parts then cost nothing without KSM counting them: its own counts "
            "of what it saved may be too low. The page tables, and so freed and fraction of the oracle, have them."
        )
    if mixed := [engine.name for engine in engines if mixes_zeros(engine)]:
        said.append(
            f"KSM without use_zero_pages counts zeros among contents, so with {' and '.join(mixed)} nothing is said of zeros."
        )
    short = [
        step.touched_fraction
        for result in results
        for step in result.steps
        if plan.ladder and step.touched_fraction < plan.ladder.touch_fraction
    ]
    if plan.ladder and short:
        said.append(
            f"Some guests had touched less of their RAM than the {plan.ladder.touch_fraction:.0%} that was asked for: "
            f"{min(short):.1%} at least."
        )
    if missing := {
        one.noticed.missing_tail
        for engine in engines
        for one in engine.guests
        if one.noticed.operations and one.noticed.missing_tail
    }:
        said.append(
            f"p99.9 is left out where there is too little to tell it from ({'; '.join(sorted(missing))})."
        )
    return said


def write(report: Report, folder: Path) -> list[Path]:
    """Write report.json, and report.csv with a line a run; return both."""
    paths = [folder / "report.json", folder / "report.csv"]
    write_file(paths[0], report)
    rows = [msgspec.to_builtins(run) for run in report.runs]
    with paths[1].open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return paths

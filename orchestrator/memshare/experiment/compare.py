# SPDX-License-Identifier: GPL-2.0-or-later
"""Two sides, figure by figure: two engines of one experiment, or one engine in two experiments. Pure."""

from collections.abc import Iterable, Mapping, Sequence

from memshare.experiment.figures import (
    FIGURES,
    Figure,
    Noticed,
    RunFigures,
    figures,
    noticed,
    value_of,
)
from memshare.experiment.plan import EngineKind
from memshare.experiment.record import Record
from memshare.experiment.recording import Recording
from memshare.experiment.statistics import Difference, Summary, difference, summarise
from memshare.render import Unit, Value, human


class Row(Record, frozen=True, kw_only=True):
    """A figure of both sides; difference is B less A. One side's value is None where it has none."""

    engine: EngineKind
    against: EngineKind
    figure: str
    name: str
    unit: Unit
    a: Summary | None
    b: Summary | None
    difference: Difference | None


def row(
    engine: EngineKind,
    against: EngineKind,
    figure: Figure,
    values: tuple[Sequence[float], Sequence[float]],
) -> Row | None:
    """Compare the values of both sides; None when neither has one."""
    a, b = values
    if not a and not b:
        return None
    return Row(
        engine=engine,
        against=against,
        figure=figure.key,
        name=figure.name,
        unit=figure.unit,
        a=summarise(a),
        b=summarise(b),
        difference=difference(a, b),
    )


def known(runs: Iterable[RunFigures], key: str) -> list[float]:
    """The values of a figure in the runs that have it."""
    return [value for run in runs if (value := value_of(run, key)) is not None]


def by_engine(runs: Iterable[RunFigures]) -> dict[EngineKind, list[RunFigures]]:
    """Sort runs by engine, in the order in which engines first appear."""
    sorted_runs: dict[EngineKind, list[RunFigures]] = {}
    for run in runs:
        sorted_runs.setdefault(run.engine, []).append(run)
    return sorted_runs


def engines(
    runs: Mapping[EngineKind, Sequence[RunFigures]], a: EngineKind, b: EngineKind, keys: set[str]
) -> list[Row]:
    """Compare two engines of one experiment."""
    rows = [
        row(b, a, figure, (known(runs[a], figure.key), known(runs[b], figure.key)))
        for figure in FIGURES
        if figure.key in keys
    ]
    return [one for one in rows if one is not None]


def experiments(a: Recording, b: Recording) -> list[Row]:
    """Compare each engine that both have, and what its guests noticed in phases that both have."""
    rows: list[Row | None] = []
    runs_a = by_engine(figures(a.plan, run) for run in a.runs)
    runs_b = by_engine(figures(b.plan, run) for run in b.runs)
    for engine in (engine for engine in runs_a if engine in runs_b):
        rows += [
            row(
                engine,
                engine,
                figure,
                (known(runs_a[engine], figure.key), known(runs_b[engine], figure.key)),
            )
            for figure in FIGURES
        ]
        noticed_b = {(one.phase, one.load): one for one in noticed(b.of(engine))}
        for one in noticed(a.of(engine)):
            if (other := noticed_b.get((one.phase, one.load))) is not None:
                rows.append(row(engine, engine, rate_in(one), (rates(one), rates(other))))
    return [one for one in rows if one is not None]


def rate_in(one: Noticed) -> Figure:
    """Throughput in that phase as a figure of its own."""
    return Figure(
        f"rate_{one.phase}_{one.load}",
        f"{one.phase}: {one.load}",
        Unit.PER_SECOND,
        "operations a second of a guest",
    )


def rates(one: Noticed) -> list[float]:
    """A value a guest and repeat."""
    return list(one.rates.values())


def record(one: Row) -> dict[str, Value]:
    """A row for JSON and CSV."""
    change = one.difference
    return {
        "engine": one.engine.value,
        "figure": one.figure,
        "a": one.a.median if one.a else None,
        "a_values": one.a.count if one.a else 0,
        "b": one.b.median if one.b else None,
        "b_values": one.b.count if one.b else 0,
        "difference": change.median if change else None,
        "difference_low": change.low if change else None,
        "difference_high": change.high if change else None,
        "p": change.p if change else None,
    }


def cells(one: Row) -> dict[str, Value]:
    """A row for people."""
    change = one.difference
    return {
        "engine": one.engine.value,
        "figure": one.name,
        "a": human(one.a.median if one.a else None, one.unit),
        "b": human(one.b.median if one.b else None, one.unit),
        "difference": signed(change.median, one.unit) if change else "-",
        "interval": interval(change, one.unit),
        "p": "-" if change is None or change.p is None else f"{change.p:.3f}",
    }


def interval(change: Difference | None, unit: Unit) -> str:
    """The 95% interval of a difference, for people."""
    if change is None or change.low is None or change.high is None:
        return "-"
    return f"{signed(change.low, unit)} to {signed(change.high, unit)}"


def signed(value: float, unit: Unit) -> str:
    """A difference: with its sign."""
    text = human(value, unit)
    return text if text.startswith("-") else f"+{text}"

# SPDX-License-Identifier: GPL-2.0-or-later
"""The report as one page of HTML that needs nothing else: no network, no script. Pure but for reading its template."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from importlib import resources
from math import comb
from string import Template
from typing import Any, NamedTuple

import msgspec

from memshare.experiment import compare
from memshare.experiment.figures import FIGURES, MOST, Figure
from memshare.experiment.plan import EngineKind
from memshare.experiment.report import NAMES, EngineReport, GuestView, Report, median
from memshare.experiment.statistics import CONFIDENCE, Summary
from memshare.render import Unit, human, human_bytes

BY_KEY = {figure.key: figure for figure in FIGURES}

#: Caption -> the columns of a table of engines.
TABLES = {
    "Memory": (
        "overcommit_ratio",
        "overcommit_peak",
        "overcommit_floor",
        "ladder_guests",
        "ram_given_bytes",
        "used_bytes",
        "saved_zero_bytes",
        "saved_content_bytes",
    ),
    "How fast, and at which price": (
        "oracle_fraction",
        "oracle_floor",
        "seconds_to_most",
        "seconds_to_nearly_all",
        "cpu_seconds_to_most",
        "cpu_seconds",
        "cpu_seconds_per_gib",
        "steady_cpu_ratio",
    ),
}


#: Figures of a repeat that has come so far.
SOUGHT = {
    "seconds_to_most",
    "seconds_to_nearly_all",
    "cpu_seconds_to_most",
    "steady_cpu_ratio",
    "overcommit_floor",
    "oracle_floor",
}


class Drawing(NamedTuple):
    """A picture for the page. svg is markup, and trusted; the rest is text."""

    title: str
    caption: str
    svg: str


def render(report: Report, drawings: Iterable[Drawing]) -> str:
    """Return the page."""
    template = Template((resources.files(__package__) / "page.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=escape(f"memshare experiment: {report.plan.name}"),
        plan=escape(f"{report.plan.name}, {report.started_utc[:16].replace('T', ' ')} UTC"),
        # No line ends between a number and its unit.
        headline=re.sub(r"(\d) (?=[KMGT]?i?B\b)", "\\1&nbsp;", escape(report.headline)),
        description=escape(report.plan.description),
        tiles="\n".join(_tiles(report)),
        tables="\n".join(_engine_tables(report)),
        reading=f"Medians over repeats. Small, where there are several repeats: in brackets the {CONFIDENCE:.0%} interval of "
        "the median, else the least and the greatest. A dash: this cannot be had.",
        plots="\n".join(_figure(drawing) for drawing in drawings),
        noticed=_noticed(report),
        differences=_differences(report),
        integrity=_integrity(report),
        caveats="\n".join(f"<li>{escape(caveat)}</li>" for caveat in report.caveats),
        command=escape(report.command),
        facts="\n".join(_facts(report)),
        words="\n".join(
            _fact(figure.name, figure.meaning) for figure in FIGURES if _has(report, figure.key)
        ),
    )


def _has(report: Report, key: str) -> bool:
    return any(median(engine, key) is not None for engine in report.engines)


def _row_class(engine: EngineKind) -> str:
    return ' class="ours"' if engine is EngineKind.MEMSHARE else ""


def _tiles(report: Report) -> Iterator[str]:
    """The few figures that matter most."""
    for engine in (
        report.find(EngineKind.MEMSHARE),
        report.best_ksm(),
        report.find(EngineKind.OFF),
    ):
        if engine is not None:
            yield _tile(
                f"overcommit, {engine.name}",
                median(engine, "overcommit_ratio"),
                Unit.TIMES,
                engine.engine,
            )
    ours = report.find(EngineKind.MEMSHARE)
    if ours is not None:
        for key, what in (
            ("oracle_fraction", "of the oracle, memshare"),
            ("seconds_to_most", f"until {MOST:.0%} of it"),
            ("cpu_seconds_per_gib", "CPU per GiB saved"),
        ):
            if median(ours, key) is not None:
                yield _tile(what, median(ours, key), BY_KEY[key].unit, ours.engine)
    good, word = ("good", "clean") if report.is_clean else ("bad", "broken")
    yield f'<div><dt>integrity</dt><dd class="{good}">{word}</dd></div>'


def _tile(what: str, value: float | None, unit: Unit, engine: EngineKind) -> str:
    return f"<div{_row_class(engine)}><dt>{escape(what)}</dt><dd>{escape(human(value, unit))}</dd></div>"


def _table(
    caption: str, heads: Sequence[str], rows: Iterable[str], *, texts: Sequence[int] = ()
) -> str:
    """A table that scrolls in its own box; rows are markup, caption and heads text."""
    cells = "".join(
        f'<th scope="col"{" class=text" if number in texts else ""}>{escape(head)}</th>'
        for number, head in enumerate(heads)
    )
    return (
        f'<div class="scroll" role="region" aria-label="{escape(caption)}" tabindex="0">\n<table>\n'
        f"<caption><span>{escape(caption)}</span></caption>\n<thead><tr>{cells}</tr></thead>\n<tbody>\n"
        + "\n".join(rows)
        + "\n</tbody>\n</table>\n</div>"
    )


def _row(head: str, cells: Iterable[str], engine: EngineKind) -> str:
    return f'<tr{_row_class(engine)}><th scope="row">{escape(head)}</th>{"".join(cells)}</tr>'


def _cell(value: str, small: str = "") -> str:
    below = f"<small>{escape(small)}</small>" if small else ""
    return f"<td>{escape(value)}{below}</td>"


def _summary(summary: Summary | None, unit: Unit) -> str:
    if summary is None:
        return _cell(human(None, unit))
    return _cell(human(summary.median, unit), spread(summary, unit))


def _measured(report: Report, engine: EngineReport, figure: Figure) -> str:
    """A figure of an engine; a dash would hide that it was looked for and never seen, in some repeats or in all."""
    summary = engine.figures[figure.key]
    is_sought = (
        figure.key in SOUGHT and engine.engine is not EngineKind.OFF and not report.plan.ladder
    )
    far = engine.figures["seconds_to_most"] if figure.key != "seconds_to_nearly_all" else summary
    if is_sought and summary is None and far is None:
        return _cell("not reached")
    if summary is not None and summary.count < engine.repeats:
        return _cell(human(summary.median, figure.unit), _only(summary, engine))
    return _summary(summary, figure.unit)


def _only(summary: Summary | None, engine: EngineReport | None) -> str:
    """That not all repeats have it."""
    if summary is None or engine is None or summary.count == engine.repeats:
        return ""
    return f"in {summary.count} of {engine.repeats} only"


def spread(summary: Summary, unit: Unit) -> str:
    """How far values lie from each other: the interval in brackets, or from the least to the greatest."""
    if summary.low is not None and summary.high is not None:
        return f"[{human(summary.low, unit)}, {human(summary.high, unit)}]"
    low, high = human(summary.least, unit), human(summary.greatest, unit)
    return f"{low} to {high}" if low != high else ""


def _engine_tables(report: Report) -> Iterator[str]:
    for caption, keys in TABLES.items():
        columns: list[Figure] = [BY_KEY[key] for key in keys if _has(report, key)]
        if columns:
            yield _table(
                caption,
                ["engine", *(figure.name for figure in columns)],
                [
                    _row(
                        engine.name,
                        [_measured(report, engine, figure) for figure in columns],
                        engine.engine,
                    )
                    for engine in report.engines
                ],
            )


def _figure(drawing: Drawing) -> str:
    return (
        f"<figure>\n<h3>{escape(drawing.title)}</h3>\n{drawing.svg}\n"
        f"<figcaption>{escape(drawing.caption)}</figcaption>\n</figure>"
    )


def _noticed(report: Report) -> str:
    """What guests noticed, by phase and load, one engine below the other."""
    keys = dict.fromkeys(
        (view.noticed.phase, view.noticed.load)
        for engine in report.engines
        for view in engine.guests
    )
    if not keys:
        return ""
    tables = [
        _table(
            f"Phase {phase}, load {load}",
            ["engine", "operations/s", "slowdown", "p50", "p99", "p99.9", "p99.9 longer by", "longest stall"],
            [
                _noticed_row(engine, view)
                for engine in report.engines
                for view in engine.guests
                if (view.noticed.phase, view.noticed.load) == (phase, load)
            ],
        )
        for phase, load in keys
    ]  # fmt: skip
    itself = (
        " Where guests did the same before sharing began, each is first held against itself then, with sharing off as well."
        if report.plan.start_phase
        else ""
    )
    return (
        '<section aria-labelledby="guests">\n<h2 id="guests">What guests noticed</h2>\n'
        "<p>By their own clocks. Slowdown: how much less each guest did than the same guest with sharing off in the same "
        f"repeat; the median over guests and repeats. Less than zero: it did more.{itself}</p>\n"
        + "\n".join(tables)
        + "\n</section>"
    )


def _noticed_row(engine: EngineReport, view: GuestView) -> str:
    one, us = view.noticed, Unit.MICROSECONDS
    return _row(
        engine.name,
        [
            _summary(view.rate, Unit.PER_SECOND),
            _summary(view.slowdown, Unit.RATIO),
            _cell(human(one.p50_us, us)),
            _cell(human(one.p99_us, us)),
            _cell(human(one.p999_us, us)),
            _cell(human(view.p999_slowdown, Unit.RATIO)),
            _cell(human(one.longest_stall_us, us)),
        ],
        engine.engine,
    )


def _differences(report: Report) -> str:
    if not report.differences:
        return ""
    rows = []
    for one in report.differences:
        cells = {key: str(value) for key, value in compare.cells(one).items()}
        sides = (("a", one.a, one.against), ("b", one.b, one.engine))
        shown = [_cell(cells[key], _only(found, report.find(side))) for key, found, side in sides]
        shown += [_cell(cells[key]) for key in ("difference", "interval", "p")]
        rows.append(
            f'<tr><th scope="row">{escape(NAMES[one.against])}</th><td class="text">{escape(one.name)}</td>'
            + "".join(shown)
            + "</tr>"
        )
    repeats = report.plan.repeats
    least = f", which with {repeats} repeats is never below {2 / comb(2 * repeats, repeats):.3f}"
    tested = f"; p by a permutation test{least}" if repeats > 1 else ""
    return (
        '<section aria-labelledby="differences">\n<h2 id="differences">memshare against the others</h2>\n'
        + _table(
            f"Differences of medians{tested}",
            ["against", "figure", "theirs", "memshare", "difference", f"{CONFIDENCE:.0%} interval", "p"],
            rows,
            texts=[1],
        )
        + "\n</section>"
    )  # fmt: skip


def _integrity(report: Report) -> str:
    if report.is_clean:
        runs = f"all {len(report.runs)} runs" if len(report.runs) > 1 else "the one run"
        return (
            f'<p class="good">Clean in {runs}: every guest verified files in its memory from beginning to end, '
            "and found each byte as it should be.</p>"
        )
    return "\n".join(f'<p class="bad">{escape(wrong)}</p>' for wrong in report.wrong)


def _fact(name: str, value: str) -> str:
    return f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>"


def _facts(report: Report) -> Iterator[str]:
    guests = report.plan.guests
    yield _fact(
        "guests",
        f"{guests.count}, each {human_bytes(guests.ram_bytes)}, image {guests.image}, {guests.accel}",
    )
    if report.plan.budget_bytes is not None:
        yield _fact("budget", human_bytes(report.plan.budget_bytes))
    for phase in report.plan.phase:
        begins = "; sharing begins with it" if phase.name == report.plan.start_phase else ""
        what = f"{phase.seconds:g} s: {', '.join(phase.loads)}{begins}"
        yield _fact(f"phase {phase.name}", what)
    rate = report.plan.scan_rate_pages
    yield _fact(
        "memshare's scan rate",
        f"{rate} pages a second and guest" if rate else "decided by memshare daemon",
    )
    for name, value in flat(report.host):
        yield _fact(name, value)


def flat(facts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Facts of the host as text, whatever they are."""
    for key, value in facts.items():
        name = f"{prefix}{key.removesuffix('_bytes').replace('_', ' ')}"
        if isinstance(value, Mapping):
            yield from flat(value, f"{name}: ")
        elif key.endswith("_bytes") and isinstance(value, int):
            yield name, human_bytes(value)
        elif isinstance(value, str):
            yield name, value or "-"
        else:
            yield name, msgspec.json.encode(value).decode()

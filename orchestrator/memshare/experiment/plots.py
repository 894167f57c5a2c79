# SPDX-License-Identifier: GPL-2.0-or-later
"""Pictures of an experiment: one an SVG file, and the same for the page, where colours follow the reader's.

Nothing is computed here that the report does not say. Engines keep colour and dashes in all pictures; the colours can be told
apart by most colour-blind people, and on white as well as on black.
"""

import io
import re
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from memshare.bench import style
from memshare.experiment.figures import (
    MOST,
    Noticed,
    fraction,
    merge,
    settled,
)
from memshare.experiment.plan import EngineKind
from memshare.experiment.recording import Recording, Run
from memshare.experiment.report import NAMES, Report, median, mixes_zeros
from memshare.render import Unit, human, human_bytes

GIB = 1 << 30
SIZE_INCHES = (4.6, 3.0)  # with this font readable on a phone, and not huge in two columns
INK = "#1c1d1e"  # stands for the reader's text colour
PAPER = "#fffffe"  # stands for the reader's background

LOOKS: dict[EngineKind, dict[str, Any]] = {
    EngineKind.OFF: {"color": "#868686", "linestyle": (0, (1, 1))},
    EngineKind.KSM_DEFAULT: {"color": "#56b4e9", "linestyle": (0, (5, 2))},
    EngineKind.KSM_FULL: {"color": "#2f7fc1", "linestyle": (0, (5, 1))},
    EngineKind.KSM_ADVISOR: {"color": "#009e73", "linestyle": (0, (3, 1, 1, 1))},
    EngineKind.KSMTUNED: {"color": "#cc79a7", "linestyle": (0, (6, 1, 1, 1))},
    EngineKind.MEMSHARE_ZERO: {"color": "#e69f00", "linestyle": (0, (2, 1))},
    EngineKind.MEMSHARE: {"color": "#d55e00", "linewidth": 2.2},
}
ZERO, CONTENT = "#56b4e9", "#d55e00"


class Plot(NamedTuple):
    """A picture. name: of its file. caption: what is to be seen, for all; alt: its values, for who cannot see it."""

    name: str
    title: str
    caption: str
    alt: str
    draw: Callable[[Any], None]


def plots_of(recording: Recording, report: Report) -> list[Plot]:
    """The pictures for which there is something to draw."""
    first = _ladder if recording.plan.ladder else _memory
    found = [first(recording, report)]
    if any(engine.engine is not EngineKind.OFF for engine in report.engines):
        found += [_oracle(recording, report), _cpu(recording, report), _savings(report)]
    if any(view.rate for engine in report.engines for view in engine.guests):
        found.append(_throughput(report))
    if (latency := _latency(recording, report)) is not None:
        found.append(latency)
    return found


def svg(plot: Plot) -> str:
    """Draw it; the same recording gives the same text, byte for byte."""
    pyplot = style.pyplot(
        f"memshare-{plot.name}",
        **{
            "font.size": 9,
            "lines.linewidth": 1.5,
            "text.color": INK,
            "axes.labelcolor": INK,
            "axes.edgecolor": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "figure.facecolor": PAPER,
            "savefig.facecolor": PAPER,
            "axes.facecolor": "none",
            "grid.color": INK,
            "grid.alpha": 0.12,
            "axes.axisbelow": True,
        },
    )
    figure, axis = pyplot.subplots(figsize=SIZE_INCHES, layout="constrained")
    try:
        plot.draw(axis)
        style.bare(axis)
        _legend(figure, axis)
        text = io.StringIO()
        style.save(figure, text)
    finally:
        pyplot.close(figure)
    return text.getvalue()


def _legend(figure: Any, axis: Any) -> None:
    handles, labels = axis.get_legend_handles_labels()
    if labels:
        figure.legend(
            handles, labels, loc="outside upper left", ncols=2 if len(labels) > 3 else 3, frameon=False,
            fontsize=8.5, handlelength=2.2, columnspacing=1.2,
        )  # fmt: skip


def inline(text: str, alt: str) -> str:
    """Make a drawn SVG part of a page: no fixed size, no colour of its own for text and background, no ids of groups."""
    body = text[text.index("<svg") :]
    body = re.sub(r"\s*<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    # Its rule for all elements would hold for the page's too; page.html has one for plots.
    body = re.sub(r"\s*<style.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    box = re.search(r'viewBox="([^"]*)"', body)
    assert box is not None, "matplotlib writes a viewBox"
    head = (
        f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{box[1]}" role="img" '
        f'aria-label="{escape(alt)}">'
    )
    body = re.sub(r"<svg[^>]*>", lambda _: head, body, count=1)
    return body.replace(INK, "currentColor").replace(PAPER, "none").rstrip("\n")


def write(plots: Iterable[tuple[Plot, str]], folder: Path) -> list[Path]:
    """Write each to a file of its own."""
    paths = []
    for plot, text in plots:
        path = folder / f"{plot.name}.svg"
        path.write_text(text)
        paths.append(path)
    return paths


def _lines(
    recording: Recording,
    axis: Any,
    line: Callable[[Run], tuple[Sequence[float], Sequence[float]]],
    *,
    with_off: bool,
) -> None:
    """A line a run; time counts from the last boot, which is at another moment in each, but for ladders."""
    is_ladder = recording.plan.ladder is not None
    labelled = set()
    for run in recording.runs:
        engine = run.result.engine
        if engine is EngineKind.OFF and not with_off:
            continue
        at, values = line(run)
        start = 0.0 if is_ladder else run.result.last_boot_seconds
        name = None if engine in labelled else NAMES[engine]
        labelled.add(engine)
        axis.plot([moment - start for moment in at], values, label=name, **LOOKS[engine])
    axis.set_xlabel(
        "seconds since the first start" if is_ladder else "seconds since the last guest was up"
    )
    axis.grid(axis="y")
    if not is_ladder and recording.runs:
        _phases(axis, recording.runs[0])


def _phases(axis: Any, run: Run) -> None:
    """Mark where phases begin, by the first run: they are as long in all."""
    axis.set_xlim(left=-run.result.last_boot_seconds)
    for name, (start, _) in run.result.phases.items():
        at = start - run.result.last_boot_seconds
        axis.axvline(at, color=INK, alpha=0.35, linewidth=0.8)
        axis.annotate(
            name, (at, 1), xycoords=("data", "axes fraction"), xytext=(3, -2),
            textcoords="offset points", va="top", fontsize=8, alpha=0.8,
        )  # fmt: skip


def _each(report: Report, key: str, unit: Unit) -> str:
    """Medians of all engines, in words."""
    told = [
        f"{engine.name} {human(median(engine, key), unit)}"
        for engine in report.engines
        if median(engine, key) is not None
    ]
    return "; ".join(told) or "none"


def _memory(recording: Recording, report: Report) -> Plot:
    given = max(run.ram_given_bytes for run in report.runs)

    def draw(axis: Any) -> None:
        _lines(
            recording,
            axis,
            lambda run: (
                [sample.seconds for sample in run.samples],
                [sample.used_bytes / GIB for sample in run.samples],
            ),
            with_off=True,
        )
        axis.axhline(given / GIB, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        axis.annotate(
            "guest RAM", (1, given / GIB), xycoords=("axes fraction", "data"), xytext=(0, 3),
            textcoords="offset points", ha="right", fontsize=8,
        )  # fmt: skip
        axis.set_ylim(bottom=0)
        axis.set_ylabel("GiB")

    return Plot(
        name="memory",
        title="Memory used",
        caption="All that guests take on the host: QEMU, broker, daemon and the kernel's part, without clean page cache. "
        f"Dashed: the RAM that guests were given, {human_bytes(given)}.",
        alt=f"Memory used over time. At the end: {_each(report, 'used_bytes', Unit.BYTES)}.",
        draw=draw,
    )


def _ladder(recording: Recording, report: Report) -> Plot:
    budget = recording.plan.budget_bytes or 0

    def draw(axis: Any) -> None:
        labelled = set()
        for run in recording.runs:
            engine, steps = run.result.engine, run.result.steps
            axis.plot(
                [step.guests for step in steps],
                [step.used_bytes / GIB for step in steps],
                label=None if engine in labelled else NAMES[engine],
                marker="o",
                markersize=3,
                **LOOKS[engine],
            )
            labelled.add(engine)
        axis.axhline(budget / GIB, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        axis.annotate(
            "budget", (0, budget / GIB), xycoords=("axes fraction", "data"), xytext=(3, 3),
            textcoords="offset points", fontsize=8,
        )  # fmt: skip
        most = max((step.guests for run in recording.runs for step in run.result.steps), default=1)
        given = recording.plan.guests.ram_bytes / GIB
        axis.plot(
            [0, most], [0, most * given], color=INK, linewidth=0.8, linestyle=(0, (1, 3)),
            label="guest RAM",
        )  # fmt: skip
        axis.set_xlim(left=0)
        axis.set_ylim(bottom=0)
        axis.set_xlabel("guests")
        axis.set_ylabel("GiB used")
        axis.grid(axis="y")

    return Plot(
        name="ladder",
        title="Guests added one by one",
        caption=f"Memory used by so many guests, of {human_bytes(recording.plan.guests.ram_bytes)} each. "
        f"Dashed: the budget, {human_bytes(budget)}; dotted: the RAM that they were given.",
        alt=f"Memory used by number of guests. Within the budget: {_each(report, 'ladder_guests', Unit.COUNT)} guests.",
        draw=draw,
    )


def _oracle(recording: Recording, report: Report) -> Plot:
    def draw(axis: Any) -> None:
        def line(run: Run) -> tuple[list[float], list[float]]:
            known = [
                (one.seconds, part) for one in run.oracles if (part := fraction(one)) is not None
            ]
            return [at for at, _ in known], [part * 100 for _, part in known]

        _lines(recording, axis, line, with_off=False)
        axis.axhline(MOST * 100, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        axis.set_ylim(0, 108)
        axis.set_yticks([0, 25, 50, 75, MOST * 100])
        axis.set_ylabel("% of the oracle")

    return Plot(
        name="oracle",
        title="How much of what can be shared is shared",
        caption="Page frames freed, of the most that exact sharing could have freed at that moment: the oracle, from the "
        f"contents of all guests' RAM. Dashed: {MOST:.0%}.",
        alt=f"Fraction of the oracle over time. At the end: {_each(report, 'oracle_fraction', Unit.RATIO)}.",
        draw=draw,
    )


def _cpu(recording: Recording, report: Report) -> Plot:
    def draw(axis: Any) -> None:
        _lines(
            recording,
            axis,
            lambda run: (
                [sample.seconds for sample in run.samples],
                [sample.scan_cpu_seconds for sample in run.samples],
            ),
            with_off=False,
        )
        axis.set_ylim(bottom=0)
        axis.set_ylabel("CPU seconds")

    return Plot(
        name="cpu",
        title="What finding it costs",
        caption="CPU time of scanning since the start: engine threads, broker and daemon, or ksmd and ksmtuned.",
        alt=f"CPU time over time. At the end: {_each(report, 'cpu_seconds', Unit.SECONDS)}.",
        draw=draw,
    )


def _savings(report: Report) -> Plot:
    sharing = [engine for engine in report.engines if engine.engine is not EngineKind.OFF]
    mixed = any(mixes_zeros(engine) for engine in sharing)

    def draw(axis: Any) -> None:
        names = [engine.name for engine in sharing]
        zero = [(median(engine, "saved_zero_bytes") or 0) / GIB for engine in sharing]
        content = [(median(engine, "saved_content_bytes") or 0) / GIB for engine in sharing]
        axis.barh(names, zero, 0.55, label="zero pages", color=ZERO)
        axis.barh(names, content, 0.55, left=zero, label="equal contents", color=CONTENT)
        axis.set_ylim(max(len(names), 4) - 0.5, -0.5)
        axis.set_xlabel("GiB saved")
        axis.grid(axis="x")

    return Plot(
        name="savings",
        title="Zero pages and contents",
        caption="What each engine counted as saved at the end, by pages of zeros and by equal pages that are not zero."
        + (" KSM without use_zero_pages counts zeros among contents." if mixed else ""),
        alt=f"Saved by zero pages: {_each(report, 'saved_zero_bytes', Unit.BYTES)}. "
        f"By equal contents: {_each(report, 'saved_content_bytes', Unit.BYTES)}.",
        draw=draw,
    )


def _throughput(report: Report) -> Plot:
    """Relative to sharing off where that ran, else operations a second."""
    off = report.find(EngineKind.OFF) if len(report.engines) > 1 else None
    base = (
        {
            (view.noticed.phase, view.noticed.load): view.rate.median
            for view in off.guests
            if view.rate
        }
        if off
        else {}
    )
    wanted = list(
        dict.fromkeys(
            (view.noticed.phase, view.noticed.load)
            for engine in report.engines
            for view in engine.guests
            if view.rate and (not base or base.get((view.noticed.phase, view.noticed.load)))
        )
    )
    drawn = [engine for engine in report.engines if not base or engine is not off]

    def height(view: Any) -> float:
        if not base:
            return float(view.rate.median)
        return float(100 * (1 - view.slowdown.median))

    def span(view: Any) -> tuple[float, float]:
        """How far its 95% interval goes below and above the bar."""
        of = view.slowdown if base else view.rate
        if of.low is None:
            return 0.0, 0.0
        if base:
            return 100 * (of.high - of.median), 100 * (of.median - of.low)
        return of.median - of.low, of.high - of.median

    told = [
        f"{engine.name}, {view.noticed.phase}, {view.noticed.load}: {height(view):.1f}{'%' if base else '/s'}"
        for engine in drawn
        for view in engine.guests
        if (view.slowdown if base else view.rate)
    ]

    def draw(axis: Any) -> None:
        width = 0.8 / max(1, len(drawn))
        for number, engine in enumerate(drawn):
            seen = {(view.noticed.phase, view.noticed.load): view for view in engine.guests}
            places, heights, spans = [], [], []
            for place, key in enumerate(wanted):
                view = seen.get(key)
                if view is not None and (view.slowdown if base else view.rate):
                    places.append(place - 0.4 + width * (number + 0.5))
                    heights.append(height(view))
                    spans.append(span(view))
            bars = axis.bar(
                places,
                heights,
                width * 0.9,
                label=engine.name,
                color=LOOKS[engine.engine]["color"],
                yerr=list(zip(*spans, strict=True)) if any(map(any, spans)) else None,
                ecolor=INK,
                capsize=2,
            )
            if len(wanted) * len(drawn) <= 12:
                axis.bar_label(bars, fmt="%.1f" if base else "%.3g", fontsize=8, padding=1)
        if base:
            axis.axhline(100, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        axis.set_xticks(range(len(wanted)), [f"{phase}:\n{load}" for phase, load in wanted])
        axis.set_ylabel("% of sharing off" if base else "operations a second")
        axis.grid(axis="y")

    return Plot(
        name="throughput",
        title="Guests' throughput",
        caption="Operations a second of each guest, median of all guests and repeats, as a part of what the same guest did "
        "with sharing off (dashed)."
        if base
        else "Operations a second of each guest, median of all guests and repeats.",
        alt=f"Guests' throughput. {'; '.join(told)}.",
        draw=draw,
    )


def _latency(recording: Recording, report: Report) -> Plot | None:
    """Of the phase and load with the most operations."""
    seen: list[Noticed] = [view.noticed for engine in report.engines for view in engine.guests]
    most = max(seen, key=lambda one: one.operations, default=None)
    if most is None or most.p50_us is None:
        return None
    key = (most.phase, most.load)

    def draw(axis: Any) -> None:
        from matplotlib import ticker

        for engine in report.engines:
            histogram = merge(
                reading.latency_us
                for run in recording.of(engine.engine)
                for reading in settled(run)
                if (reading.phase, reading.load) == key
            )
            total = left = sum(histogram.values())
            bounds, above = [], []
            for bound, count in histogram.items():
                bounds.append(bound / 1e3)
                above.append(left / total * 100)
                left -= count
            axis.step(bounds, above, where="pre", label=engine.name, **LOOKS[engine.engine])
        axis.set_xscale("log")
        left, right = axis.get_xlim()
        axis.xaxis.set_major_locator(
            ticker.LogLocator(subs=(1, 2, 5) if right < 100 * left else (1,))
        )
        axis.xaxis.set_minor_formatter(ticker.NullFormatter())
        axis.set_yscale("log")
        axis.yaxis.set_minor_formatter(ticker.NullFormatter())
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}%")
        axis.set_xlabel("milliseconds")
        axis.set_ylabel("operations that took longer")
        axis.grid(axis="both")

    told = [
        f"{engine.name} {human(view.noticed.p50_us, Unit.MICROSECONDS)}, "
        f"{human(view.noticed.p99_us, Unit.MICROSECONDS)} and {human(view.noticed.p999_us, Unit.MICROSECONDS)}"
        for engine in report.engines
        for view in engine.guests
        if (view.noticed.phase, view.noticed.load) == key
    ]
    return Plot(
        name="latency",
        title="Guests' latency",
        caption=f"Which part of all operations took longer, in phase {most.phase}, load {most.load}. Both axes are logarithmic; "
        "further left is better.",
        alt=f"Latency of operations; median, p99 and p99.9: {'; '.join(told)}.",
        draw=draw,
    )

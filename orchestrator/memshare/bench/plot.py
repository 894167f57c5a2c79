# SPDX-License-Identifier: GPL-2.0-or-later
"""`./dev bench plot FILE.json... --svg OUT`: pictures of what measurements wrote, one panel a file.

Draws results of `engine`, `idle`, `first-pass`, `metadata`, `churn`, `limited` and `cache`; which one a file
is from, its keys tell. Nothing is measured here and nothing but the files is read. The same files give
the same picture, byte for byte.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from memshare.bench import style
from memshare.cli import run
from memshare.errors import MemshareError, UsageError

Records = Sequence[Mapping[str, Any]]


class Panel(msgspec.Struct, frozen=True, kw_only=True):
    """What one picture shows: bars side by side for each label, or lines where `at` has values.

    A bar that is to be met stands in `limits`, one for each label, none where there is none.
    """

    title: str
    unit: str
    labels: list[str] = []
    series: dict[str, list[float]]
    limits: list[float | None] = []
    at: list[float] = []
    at_unit: str = ""


def _engine(records: Records) -> Panel:
    good = [record for record in records if record["cpu_ratio"] is not None]
    return Panel(
        title="until the mix is shared",
        unit="CPU seconds",
        labels=[f"{record['case']}{' busy' if record['busy'] else ''}" for record in good],
        series={
            "ours": [record["ours_cpu_seconds"] for record in good],
            "ksmd": [record["ksmd_cpu_seconds"] for record in good],
        },
    )


def _idle(records: Records) -> Panel:
    return Panel(
        title="a pass over shared memory",
        unit="CPU milliseconds",
        labels=[f"{record['mix']} {record['case']}" for record in records],
        series={
            "ours": [record["ours_cpu_seconds"] * 1e3 for record in records],
            "ksmd": [record["ksmd_cpu_seconds"] * 1e3 for record in records],
        },
    )


def _first_pass(records: Records) -> Panel:
    from memshare.bench.first_pass import BAR_RATIO

    record = records[0]
    speeds = [record["read_bytes_per_cpu_second"], record["engine_bytes_per_cpu_second"]]
    return Panel(
        title="memory read for the first time",
        unit="GiB per CPU second",
        labels=["a plain sum", "ours"],
        series={"": [speed / (1 << 30) for speed in speeds]},
        limits=[None, BAR_RATIO * speeds[0] / (1 << 30)],
    )


def _metadata(records: Records) -> Panel:
    from memshare.bench.metadata import BAR_RATIO

    return Panel(
        title="memory that sharing takes",
        unit="% of what is saved",
        labels=[record["case"] for record in records],
        series={
            "kernel": [record["kernel_ratio"] * 100 for record in records],
            "everything": [record["overhead_ratio"] * 100 for record in records],
        },
        limits=[
            BAR_RATIO[record["case"]] * 100 if record["case"] in BAR_RATIO else None
            for record in records
        ],
    )


def _churn(records: Records) -> Panel:
    line = records[0]["time_line"]
    total = [moment["slots_live"] + moment["slots_dead"] for moment in line]
    start = records[0]["saved_start_bytes"]
    return Panel(
        title="rewriting 5% a round",
        unit="%",
        series={
            "saved, of the start": [moment["saved_bytes"] / start * 100 for moment in line],
            "dead, of the store": [
                moment["slots_dead"] / max(1, slots) * 100
                for moment, slots in zip(line, total, strict=True)
            ],
        },
        at=[moment["seconds"] for moment in line],
        at_unit="seconds",
    )


def _limited(records: Records) -> Panel:
    return Panel(
        title="with few mappings",
        unit="% of the oracle",
        labels=[f"max_map_count {record['max_map_count']}" for record in records],
        series={"": [record["oracle_fraction"] * 100 for record in records]},
    )


def _cache(records: Records) -> Panel:
    return Panel(
        title="a program whose data lie in caches, beside a scanner",
        unit="% slower",
        labels=[f"{record['set']}, {record['place']}" for record in records],
        series={
            "ours": [record["ours"]["median"] * 100 for record in records],
            "ksmd": [record["ksmd"]["median"] * 100 for record in records],
        },
    )


#: A key that only results of one measurement have -> how they are drawn. The first that fits counts.
KINDS = {
    "ksm_use_zero_pages": _engine,
    "ksm_smart_scan": _idle,
    "read_ratio": _first_pass,
    "overhead_ratio": _metadata,
    "time_line": _churn,
    "max_map_count": _limited,
    "place": _cache,
}


def panel_of(name: str, records: Records) -> Panel:
    """Tell what is to be drawn of a file's records. Pure."""
    for key, make in KINDS.items():
        if records and all(key in record for record in records):
            return make(records)
    raise UsageError(f"{name}: not the results of a measurement that can be drawn")


def read_panel(file: Path) -> Panel:
    """Read a file that a measurement wrote."""
    try:
        records = msgspec.json.decode(file.read_bytes(), type=list[dict[str, Any]])
    except OSError as error:
        raise MemshareError(f"{file}: {(error.strerror or '').lower()}") from error
    except msgspec.DecodeError as error:
        raise UsageError(f"{file}: not the results of a measurement") from error
    return panel_of(str(file), records)


def draw(panels: Sequence[Panel], output: Path) -> None:
    """Write the picture."""
    pyplot = style.pyplot()
    figure, axes = pyplot.subplots(
        len(panels), 1, figsize=(7, 2.8 * len(panels)), squeeze=False, layout="constrained"
    )
    for axis, panel in zip(axes[:, 0], panels, strict=True):
        if panel.at:
            for name, values in panel.series.items():
                axis.plot(panel.at, values, label=name)
            axis.set_xlabel(panel.at_unit)
        else:
            _draw_bars(axis, panel)
        axis.set_title(panel.title, loc="left")
        axis.set_ylabel(panel.unit)
        style.bare(axis)
        if any(panel.series) or any(limit is not None for limit in panel.limits):
            axis.legend(frameon=False)
    style.save(figure, output)
    pyplot.close(figure)


def _draw_bars(axis: Any, panel: Panel) -> None:
    width = 0.8 / len(panel.series)
    for number, (name, values) in enumerate(panel.series.items()):
        left = -0.4 + width * (number + 0.5)
        places = [place + left for place in range(len(values))]
        drawn = axis.bar(places, values, width, label=name or None)
        axis.bar_label(drawn, fmt="%.3g", fontsize="small")
    limits = [(at, limit) for at, limit in enumerate(panel.limits) if limit is not None]
    for at, limit in limits:
        label = "bar" if at == limits[0][0] else None
        axis.hlines(limit, at - 0.45, at + 0.45, colors="black", linestyles="dashed", label=label)
    axis.set_xticks(range(len(panel.labels)), panel.labels)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--svg", "output", required=True, type=click.Path(dir_okay=False, path_type=Path))
def main(*, files: Sequence[Path], output: Path) -> None:
    """Draw what measurements wrote with --json, one panel a file.

    For instance: ./dev bench plot docs/benchmarks/{engine,idle}.json --svg docs/benchmarks/figures.svg
    """
    panels = [read_panel(file) for file in files]
    output.parent.mkdir(parents=True, exist_ok=True)
    draw(panels, output)
    print(f"written: {output}")


if __name__ == "__main__":
    run(main, sys.argv[1:], "./dev bench plot")

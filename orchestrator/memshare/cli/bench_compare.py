# SPDX-License-Identifier: GPL-2.0-or-later
"""`memshare bench compare`: two experiments side by side."""

import sys
from pathlib import Path

import click

from memshare.cli import options
from memshare.render import Column, Format, Unit, render, render_table

COLUMNS = (
    Column("engine", "ENGINE"),
    Column("figure", "FIGURE"),
    Column("a", "A", Unit.COUNT),
    Column("b", "B", Unit.COUNT),
    Column("difference", "B - A", Unit.COUNT),
    Column("interval", "95%", Unit.COUNT),
    Column("p", "P", Unit.COUNT),
)


@click.command("compare")
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@options.output
def command(a: Path, b: Path, form: str) -> None:
    """Compare the experiments in folders A and B, for each engine that both have.

    Medians over repeats, and how much more it is in B; its 95% interval where both have six values and more; P is the chance of
    such a difference between alike sides, by a permutation test, where both have two values and more.

    \b
    memshare bench compare out/before out/after
    memshare bench compare out/before out/after -o csv
    """
    from memshare.errors import UsageError
    from memshare.experiment import compare, recording

    rows = compare.experiments(recording.read(a), recording.read(b))
    if not rows:
        raise UsageError(f"{a} and {b} have no engine in common")
    if form == Format.TABLE:
        render_table(COLUMNS, [compare.cells(row) for row in rows], sys.stdout)
    else:
        records = [compare.record(row) for row in rows]
        render("figures", COLUMNS, records, Format(form), sys.stdout)

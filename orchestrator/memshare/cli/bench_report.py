# SPDX-License-Identifier: GPL-2.0-or-later
"""`memshare bench report`: what an experiment comes to."""

from pathlib import Path

import click

from memshare.errors import MemshareError


@click.command("report")
@click.argument("folder", type=click.Path(path_type=Path))
def command(folder: Path) -> None:
    """Make the report of an experiment's FOLDER, and leave it there.

    report.html is one page that needs no other file; report.json has every figure, report.csv a line a run, and each plot is
    an SVG file of its own. The same recordings give the same files. Runs that did not finish are named and left out.

    \b
    memshare bench report out/quick
    """
    from memshare.experiment import page, plots, recording, report

    read = recording.read(folder)
    made = report.build(read)
    drawn = [(plot, plots.svg(plot)) for plot in plots.plots_of(read, made)]
    html = page.render(
        made,
        [
            page.Drawing(plot.title, plot.caption, plots.inline(svg, plot.alt))
            for plot, svg in drawn
        ],
    )
    try:
        paths = report.write(made, folder) + plots.write(drawn, folder)
        paths.append(folder / "report.html")
        paths[-1].write_text(html, encoding="utf-8")
    except OSError as error:
        raise MemshareError(f"{error.filename}: {(error.strerror or '').lower()}") from error
    click.echo(made.headline)
    for path in paths:
        click.echo(f"written: {path}", err=True)

# SPDX-License-Identifier: GPL-2.0-or-later
"""`memshare bench run`: make all runs of a plan."""

import asyncio
import os
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path

import click

from memshare.errors import HostError, MeasurementError
from memshare.experiment import plan as plans
from memshare.experiment.plan import EngineKind
from memshare.experiment.record import RunFolder, RunResult
from memshare.render import render_table


@click.command("run")
@click.argument("plan", metavar="PLAN")
@click.option(
    "--output",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the experiment; not there yet unless it is resumed. [default: memshare-NAME-TIME]",
)
@click.option("--resume", is_flag=True, help="Go on with what is in the folder.")
def command(plan: str, folder: Path | None, *, resume: bool) -> None:
    """Make all runs of PLAN, a file or the name of a plan that comes with memshare.

    Needs root. Everything that is measured goes to the folder, a run at a time, engines in turn. An experiment that was
    interrupted goes on with --resume: finished runs are kept, the one that was broken off is made anew. Ctrl-C ends
    the guests and puts back what was set on this host.

    The exit code is 1 when a guest found its memory other than it had written it.
    """
    if os.geteuid() != 0:
        raise HostError("this needs root: it reads page tables and starts guests as another user")
    file = plans.find(plan)
    name = plans.load(file).name
    if folder is None:
        folder = Path(f"memshare-{name}-{datetime.now(UTC):%Y%m%dT%H%M%S}")
    results = asyncio.run(_interruptible(file, folder, resume=resume))
    from memshare.experiment import summary

    click.echo(f"written: {folder}")
    render_table(summary.COLUMNS, summary.rows(folder, results), sys.stdout)
    if wrong := [
        f"{r.repeat:02d}-{r.engine}: {r.integrity}" for r in results if r.integrity != "ok"
    ]:
        raise MeasurementError(f"integrity: {'; '.join(wrong)}")


async def _interruptible(file: Path, folder: Path, *, resume: bool) -> list[RunResult]:
    """Conduct the plan so that the first signal ends it in order, and no further one disturbs that."""
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def stop() -> None:
        for number in numbers:
            loop.add_signal_handler(number, lambda: None)
        task.cancel()

    for number in numbers:
        loop.add_signal_handler(number, stop)
    return await _conduct(file, folder, resume=resume)


async def _conduct(file: Path, folder: Path, *, resume: bool) -> list[RunResult]:
    # Here, so that --help is quick and shells complete without numpy.
    try:
        from memshare.bench.progress import Progress
        from memshare.bench.rig import SOURCE
        from memshare.experiment import engines, runner
        from memshare.experiment.run import Run
    except ImportError as error:
        raise HostError(
            f"{error.name} is not installed", "pip install 'memshare[bench]'"
        ) from error

    progress = Progress()
    try:
        build = runner.build_folder(SOURCE)
        asked = plans.load(file)
        for kind in asked.engines:  # now, not in hours when its turn comes
            engines.check(kind, build)
        images = await asyncio.to_thread(runner.images_of, asked)
        facts = runner.host_facts(images, build)
        plan = runner.open_folder(folder, file, facts, resume=resume)

        async def make(repeat: int, engine: EngineKind, place: RunFolder) -> RunResult:
            return await Run(plan, repeat, engine, images, build, place, progress).make()

        return await runner.conduct(plan, folder, make)
    finally:
        progress.end()

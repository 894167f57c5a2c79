# SPDX-License-Identifier: GPL-2.0-or-later
"""`memshare bench`: experiments with real guests. Its verbs are in modules of their own, `bench_VERB`."""

import click

from memshare.cli import LazyGroup

VERBS = {
    "run": "make all runs of a plan",
    "report": "figures, plots and a page of HTML from an experiment",
    "compare": "two experiments side by side, engine by engine",
    "plans": "the plans that come with memshare",
}


@click.group("bench", cls=LazyGroup, verbs=VERBS, package="memshare.cli.bench_")
def command() -> None:
    """Run overcommit experiments: the same guests under several engines, all measured."""

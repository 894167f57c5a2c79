# SPDX-License-Identifier: GPL-2.0-or-later
"""`memshare bench plans`: what experiments come with memshare."""

import sys

import click

from memshare.cli import options
from memshare.experiment import plan as plans
from memshare.render import Column, Format, Record, Unit, render

COLUMNS = (
    Column("name", "PLAN"),
    Column("guests", "GUESTS", Unit.COUNT),
    Column("image", "IMAGE"),
    Column("runs", "RUNS", Unit.COUNT),
    Column("description", "WHAT"),
)


@click.command("plans")
@options.output
def command(form: str) -> None:
    """List the plans that come with memshare; `memshare bench run NAME` makes one."""
    found = [plans.load(path) for path in plans.shipped()]
    records: list[Record] = [
        {
            "name": plan.name,
            "guests": plan.guests.count,
            "image": plan.guests.image,
            "runs": len(plan.runs()),
            "description": plan.description,
        }
        for plan in found
    ]
    render("plans", COLUMNS, records, Format(form), sys.stdout)

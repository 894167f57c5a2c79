# SPDX-License-Identifier: GPL-2.0-or-later
"""`memshare list`: a line for each guest."""

import asyncio
import sys

import click

from memshare.cli import guests, options
from memshare.clients.fleet import Sources, read_fleet
from memshare.render import Format, render


@click.command("list")
@guests.of_sources
@options.output
def command(sources: Sources, form: str) -> None:
    """Show what each guest shares and saves, or why it does not.

    Zero and content savings are apart; a page of the store is split among its sharers. OVERHEAD is
    what sharing costs, to be taken off the savings. A guest without the plugin is `not-sharing`, one
    that does not answer `unreachable`, and REASON says why; when none answers the exit code is 3.

    \b
    memshare list
    memshare list -o json | jq '.domains[] | select(.state == "refused") | .reason'
    """
    domains = asyncio.run(read_fleet(sources))
    rows = [guests.record(domain) for domain in domains]
    render("domains", guests.COLUMNS, rows, Format(form), sys.stdout)
    guests.check_answers(domains, sources)

# SPDX-License-Identifier: GPL-2.0-or-later
"""`memshare explain`: why a guest is scanned as fast as it is."""

import asyncio
import json
from pathlib import Path

import click

from memshare.cli import options
from memshare.clients.daemon import ask
from memshare.config import load
from memshare.render import SCHEMA, Format


@click.command("explain")
@click.argument("domain")
@options.config
@click.option("-o", "--output", "form", type=click.Choice(["text", "json"]), default="text")
def command(domain: str, path: Path, form: str) -> None:
    """Tell why a guest has the scan rate that it has.

    For instance: `3200 pages/s, a pass in 41 s: it keeps 1.2 GiB per CPU second, 100% of what is worth full speed;
    its part of 0.010 CPUs at urgency 0.00 (18.4 GiB left, 1.2 GiB of it reserved)`. The law behind it is in
    docs/operations.md.
    """
    answer = asyncio.run(ask(Path(load(path).socket), "explain", domain=domain))
    del answer["ok"]
    if form == Format.JSON:
        click.echo(json.dumps({"schema": SCHEMA, **answer}, indent=2))
        return
    if answer["held"]:
        click.echo(f"{domain}: held by the operator ({answer['held']}); memshare resume {domain}")
    click.echo(f"{domain}: {answer['reason']}")

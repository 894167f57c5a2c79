# SPDX-License-Identifier: GPL-2.0-or-later
"""`memshare fits`: whether one more guest is safe on this host."""

import asyncio
import json
from pathlib import Path

import click

from memshare.cli import options
from memshare.clients.daemon import ask
from memshare.config import load
from memshare.render import SCHEMA, Format

UNSAFE = 1


@click.command("fits")
@click.option(
    "--ram", "ram_bytes", type=options.Size(), required=True, help="RAM of the guest: 4G, 512M."
)
@click.option("--like", metavar="DOMAIN", help="A guest here that it will be like.")
@click.option("--count", type=click.IntRange(1), default=1, help="How many of them.")
@options.config
@click.option("-o", "--output", "form", type=click.Choice(["text", "json"]), default="text")
def command(ram_bytes: int, like: str | None, count: int, path: Path, form: str) -> int:
    """Tell whether more guests are safe on this host, and with what to spare.

    Safe means: there is room for all that they touch at their start, and afterwards the reserve is still free that
    the guests' sharing asks for. Without --like they are taken to share nothing. The exit code is 0 when they fit, 1 when
    not, so that a script can say `memshare fits --ram 4G --like web1 && virsh start web2`.
    """
    socket = Path(load(path).socket)
    answer = asyncio.run(ask(socket, "fits", ram_bytes=ram_bytes, count=count, like=like))
    fit = answer["fit"]
    if form == Format.JSON:
        click.echo(json.dumps({"schema": SCHEMA, **fit}, indent=2))
    else:
        click.echo(f"{'safe' if fit['is_safe'] else 'not safe'}: {fit['reason']}")
    return 0 if fit["is_safe"] else UNSAFE

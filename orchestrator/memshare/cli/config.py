# SPDX-License-Identifier: GPL-2.0-or-later
"""`memshare config`: look at the daemon's configuration before the daemon does."""

from pathlib import Path

import click
import msgspec

from memshare.cli import options
from memshare.config import files_of, load


@click.group("config")
def command() -> None:
    """Check or show the daemon's configuration."""


@command.command("check")
@options.config
def check(path: Path) -> None:
    """Tell whether the daemon would take it; exit code 2 when not, naming file and key."""
    load(path)
    files = files_of(path)
    click.echo(f"{', '.join(map(str, files)) or 'no file: all by default'}: fine", err=True)


@command.command("show")
@options.config
def show(path: Path) -> None:
    """Print every key as it is in force, as JSON."""
    text = msgspec.json.format(msgspec.json.encode(load(path)), indent=2)
    click.echo(text.decode())

# SPDX-License-Identifier: GPL-2.0-or-later
"""`memshare daemon`: decide what each guest scans, and guard the host's memory."""

import asyncio
from pathlib import Path

import click

from memshare.cli import options
from memshare.config import load
from memshare.daemon import journal


@click.command("daemon")
@options.config
@click.option("--log-level", type=click.Choice(list(journal.LEVELS)), default="info")
def command(path: Path, log_level: str) -> None:
    """Find the guests, give each its scan rate, and keep the host out of trouble.

    Runs in the foreground, until SIGTERM; SIGHUP has it read its configuration again. When it dies each guest keeps
    the rate it has. `memshare config check` tells what is wrong in a configuration.
    """
    config = load(path)
    journal.set_up(json=config.log_json, level=log_level)
    from memshare.daemon.service import Service

    asyncio.run(Service(path, config).run())

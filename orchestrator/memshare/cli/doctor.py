# SPDX-License-Identifier: GPL-2.0-or-later
"""`memshare doctor`: what is in the way of sharing, and what to do about it."""

import sys
from pathlib import Path

import click

from memshare.cli import options
from memshare.clients import emulator as emulator_client
from memshare.errors import HostError
from memshare.model import PLUGIN_FILE
from memshare.probes import Verdict, emulator, examine
from memshare.render import Column, Format, render

COLUMNS = (
    Column("verdict", "VERDICT"),
    Column("probe", "PROBE"),
    Column("what", "WHAT"),
    Column("fix", "FIX"),
)


@click.command("doctor")
@click.option(
    "--qemu",
    envvar="MEMSHARE_QEMU",
    default="qemu-system-x86_64",
    show_default=True,
    help="The QEMU to examine: a path, or a name that is looked up in PATH.",
)
@click.option(
    "--plugin",
    type=click.Path(path_type=Path),
    help=f"Where {PLUGIN_FILE} is, unless a package has installed it.",
)
@options.output
def command(qemu: str, plugin: Path | None, form: str) -> None:
    """Tell whether a QEMU can run the plugin, and why not.

    One line a probe: PASS; WARN, worth knowing; FAIL, in the way, and then the exit code is 5. The
    QEMU is started for a moment, with the plugin and without a machine.
    """
    seen = emulator_client.look(qemu, plugin or emulator_client.installed_plugin())
    findings = examine(seen, emulator.PROBES)
    render(
        "findings",
        COLUMNS,
        [
            {
                "probe": name,
                "verdict": finding.verdict.value,
                "what": finding.what,
                "fix": finding.fix,
            }
            for name, finding in findings
        ],
        Format(form),
        sys.stdout,
    )
    if any(finding.verdict is Verdict.FAIL for _, finding in findings):
        raise HostError(f"{qemu} cannot run memshare", "the lines with FAIL say why")

# SPDX-License-Identifier: GPL-2.0-or-later
"""`memshare doctor`: what is in the way of sharing, and what to do about it."""

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

import click
from click.core import ParameterSource

from memshare.cli import options
from memshare.clients import emulator as emulator_client
from memshare.clients import facts
from memshare.errors import HostError
from memshare.model import PLUGIN_FILE
from memshare.probes import Finding, Verdict, broker, emulator, examine, hypervisor, kernel, memory
from memshare.render import Column, Format, render

COLUMNS = tuple(Column(key, key.upper()) for key in ("probe", "verdict", "what", "fix"))


def examine_host(config: Path) -> list[tuple[str, Finding]]:
    """Look at this host, and judge."""
    return [
        *examine(facts.look_at_kernel(), kernel.PROBES),
        *examine(facts.look_at_memory(), memory.PROBES),
        *examine(facts.look_at_hypervisor(), hypervisor.PROBES),
        *examine(asyncio.run(facts.look_at_broker(config)), broker.PROBES),
    ]


def examine_emulator(qemu: str, plugin: Path | None) -> list[tuple[str, Finding]]:
    """Look at a QEMU, and judge."""
    seen = emulator_client.look(qemu, plugin or emulator_client.installed_plugin())
    return examine(seen, emulator.PROBES)


def print_lines(findings: Sequence[tuple[str, Finding]]) -> None:
    """Print a line a probe, and below it the fix on one of its own: it is pasted, and no table may cut it."""
    width = max(len(name) for name, _ in findings)
    for name, finding in findings:
        click.echo(f"{finding.verdict}  {name:{width}}  {finding.what}")
        if finding.fix:
            click.echo(f"{'':{width + 6}}  fix: {finding.fix}")


@click.command("doctor")
@click.option(
    "--qemu",
    envvar="MEMSHARE_QEMU",
    default="qemu-system-x86_64",
    show_default=True,
    help="The QEMU to examine, without the host: a path, or a name that is looked up in PATH.",
)
@click.option(
    "--plugin",
    type=click.Path(path_type=Path),
    help=f"Where {PLUGIN_FILE} is, unless a package has installed it.",
)
@options.config
@options.output
@click.pass_context
def command(context: click.Context, qemu: str, plugin: Path | None, path: Path, form: str) -> None:
    """Tell what is in the way of sharing on this host, and what to do about it.

    One line a probe: PASS; WARN, worth knowing; FAIL, in the way, and then the exit code is 5. Examined
    are this host and the QEMU that guests use by default; with --qemu only that QEMU. It is started for a
    moment, with the plugin and without a machine; nothing is changed.
    """
    alone = context.get_parameter_source("qemu") is ParameterSource.COMMANDLINE
    findings = [*([] if alone else examine_host(path)), *examine_emulator(qemu, plugin)]
    if form == Format.TABLE:
        print_lines(findings)
    else:
        records = [
            {
                "probe": name,
                "verdict": finding.verdict.value,
                "what": finding.what,
                "fix": finding.fix,
            }
            for name, finding in findings
        ]
        render("findings", COLUMNS, records, Format(form), sys.stdout)
    if any(finding.verdict is Verdict.FAIL for _, finding in findings):
        raise HostError(
            f"{qemu if alone else 'this host'} cannot run memshare", "the lines with FAIL say why"
        )

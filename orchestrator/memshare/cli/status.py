# SPDX-License-Identifier: GPL-2.0-or-later
"""`memshare status`: what each guest of this host shares and saves."""

import asyncio
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import click
import msgspec

from memshare.cli import options
from memshare.clients.qmp import read_domains
from memshare.errors import UnreachableError
from memshare.model import Domain
from memshare.render import Column, Format, Record, Unit, Value, render

QMP_DIR = Path("/run/memshare/qmp")

COLUMNS = (
    Column("domain", "DOMAIN"),
    Column("state", "STATE"),
    Column("group", "GROUP"),
    Column("mode", "MODE"),
    Column("ram_bytes", "RAM", Unit.BYTES),
    Column("shared_pages", "SHARED", Unit.PAGES),
    Column("broken_pages", "BROKEN", Unit.PAGES),
    Column("saved_zero_bytes", "SAVED ZERO", Unit.BYTES),
    Column("saved_content_bytes", "SAVED CONTENT", Unit.BYTES),
    Column("overhead_bytes", "OVERHEAD", Unit.BYTES),
    Column("scan_cpu_ns", "SCAN CPU", Unit.NANOSECONDS),
    Column("reason", "REASON"),
)


#: Sockets of a libvirt of this host: of the one daemon, and of the one for QEMU alone.
LIBVIRT_SOCKETS = (Path("/run/libvirt/libvirt-sock"), Path("/run/libvirt/virtqemud-sock"))


def default_uris() -> tuple[str, ...]:
    """Return this host's libvirt, if it listens and its Python binding is installed."""
    listens = any(path.exists() for path in LIBVIRT_SOCKETS)
    return ("qemu:///system",) if listens and find_spec("libvirt") else ()


async def read_hypervisor(uri: str) -> list[Domain]:
    """Return the guests of one libvirt."""
    from memshare.clients.libvirt import open_hypervisor

    async with open_hypervisor(uri) as hypervisor:
        return await hypervisor.domains(host_group="default")


async def read_all(qmp_dir: Path | None, uris: Sequence[str]) -> list[Domain]:
    """Return the guests of all sources, in order of names."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(read_hypervisor(uri)) for uri in uris]
        if qmp_dir is not None:
            tasks.append(group.create_task(read_domains(qmp_dir)))
    found = [domain for task in tasks for domain in task.result()]
    return sorted(found, key=lambda domain: domain.name)


def record(domain: Domain) -> Record:
    """One line of output. Every record has the same keys; what is not known is null."""
    row: dict[str, Value] = {"domain": domain.name, "source": domain.source}
    if domain.stats is None:
        row["state"] = "not-sharing" if domain.answered else "unreachable"
    else:
        row.update(msgspec.to_builtins(domain.stats))
        row["saved_bytes"] = domain.stats.saved_bytes
    row["reason"] = domain.problem or (domain.stats.refusal if domain.stats else "")
    return row


def with_equal_keys(rows: Sequence[Record]) -> list[Record]:
    """Fill in null for keys that only some rows have."""
    keys = dict.fromkeys(
        [*(column.key for column in COLUMNS), *(key for row in rows for key in row)]
    )
    return [{key: row.get(key) for key in keys} for row in rows]


@click.command("status")
@click.option(
    "--qmp-dir",
    type=click.Path(path_type=Path),
    envvar="MEMSHARE_QMP_DIR",
    help="Folder with a QMP socket for each guest. Default: /run/memshare/qmp, and this host's libvirt.",
)
@click.option(
    "-c",
    "--connect",
    "uris",
    metavar="URI",
    multiple=True,
    envvar="LIBVIRT_DEFAULT_URI",
    help="Guests of this libvirt. May be repeated.",
)
@options.output
def command(qmp_dir: Path | None, uris: tuple[str, ...], form: str) -> None:
    """Show what each guest shares and saves.

    Zero and content savings are apart; a page of the store is split among its sharers. OVERHEAD is
    what sharing costs, to be taken off the savings. A guest that does not answer is listed as
    `unreachable`; when none answers the exit code is 3.
    """
    if qmp_dir is None:
        uris = uris or default_uris()
        # Without libvirt the folder has to be there.
        qmp_dir = QMP_DIR if QMP_DIR.exists() or not uris else None
    domains = asyncio.run(read_all(qmp_dir, uris))
    render(
        "domains",
        COLUMNS,
        with_equal_keys([record(domain) for domain in domains]),
        Format(form),
        sys.stdout,
    )
    if domains and not any(domain.answered for domain in domains):
        raise UnreachableError(
            f"{', '.join([*uris, *([str(qmp_dir)] if qmp_dir else [])])}: no guest answers",
            "are the guests running, and may you open their sockets?",
        )

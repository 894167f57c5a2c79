# SPDX-License-Identifier: GPL-2.0-or-later
"""`memshare status`: what each guest of this host shares and saves."""

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

import click
import msgspec

from memshare.clients.qmp import NotSharingError, open_monitor
from memshare.errors import MemshareError, UnreachableError
from memshare.model import Domain
from memshare.render import Column, Format, Record, Unit, Value, render

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


async def read_domain(socket: Path) -> Domain:
    """One guest's figures, or why there are none."""
    name = socket.name.removesuffix(".qmp").removesuffix(".sock")
    try:
        async with open_monitor(socket) as monitor:
            name = await monitor.name()
            return Domain(name=name, stats=await monitor.stats())
    except NotSharingError:
        return Domain(name=name, problem="runs without memshare")
    except UnreachableError as error:
        return Domain(name=name, problem=str(error), answered=False)
    except MemshareError as error:
        return Domain(name=name, problem=str(error))


async def read_domains(folder: Path) -> list[Domain]:
    """Ask all monitors of a folder at once; in order of names."""
    try:
        sockets = sorted(path for path in folder.iterdir() if path.is_socket())
    except OSError as error:
        raise UnreachableError(
            f"{folder}: {(error.strerror or str(error)).lower()}",
            "name the folder that holds your guests' QMP sockets with --qmp-dir",
        ) from error
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(read_domain(socket)) for socket in sockets]
    return sorted((task.result() for task in tasks), key=lambda domain: domain.name)


def record(domain: Domain) -> Record:
    """One line of output. Every record has the same keys; what is not known is null."""
    row: dict[str, Value] = {"domain": domain.name}
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
    default=Path("/run/memshare/qmp"),
    show_default=True,
    help="Folder with a QMP socket for each guest.",
)
@click.option(
    "-o",
    "--output",
    "form",
    type=click.Choice([form.value for form in Format]),
    default=Format.TABLE.value,
    show_default=True,
    help="What to print.",
)
def command(qmp_dir: Path, form: str) -> None:
    """Show what each guest shares and saves.

    Zero and content savings are apart; a page of the store is split among its sharers. OVERHEAD is
    what sharing costs, to be taken off the savings. A guest that does not answer is listed as
    `unreachable`; when none answers the exit code is 3.
    """
    domains = asyncio.run(read_domains(qmp_dir))
    render(
        "domains",
        COLUMNS,
        with_equal_keys([record(domain) for domain in domains]),
        Format(form),
        sys.stdout,
    )
    if domains and not any(domain.answered for domain in domains):
        raise UnreachableError(
            f"{qmp_dir}: no guest answers",
            "are the guests running, and may you open their sockets?",
        )

# SPDX-License-Identifier: GPL-2.0-or-later
"""What the reading verbs have in common: which guests, and what is said of each.

`list`, `show` and `top` say the same of a guest, by the same keys.
"""

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from memshare import paths
from memshare.clients import fleet
from memshare.clients.fleet import Sources
from memshare.errors import MemshareError, NoSuchDomainError, UnreachableError, UsageError
from memshare.model import Domain, PageStats
from memshare.render import Column, Record, Unit, Value

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

KEYS = ("domain", "source", "uuid", *PageStats.__struct_fields__, "saved_bytes", "reason")


def of_sources(verb: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say where guests are; they reach the verb as `sources`."""

    @functools.wraps(verb)
    def command(*, qmp_dirs: tuple[Path, ...], uris: tuple[str, ...], **others: Any) -> None:
        sources = fleet.sources(qmp_dirs, uris) if qmp_dirs or uris else configured()
        verb(sources=sources, **others)

    for option in (
        click.option(
            "-c",
            "--connect",
            "uris",
            metavar="URI",
            multiple=True,
            envvar="LIBVIRT_DEFAULT_URI",
            help="Guests of this libvirt. May be repeated.",
        ),
        click.option(
            "--qmp-dir",
            "qmp_dirs",
            type=click.Path(path_type=Path),
            multiple=True,
            envvar="MEMSHARE_QMP_DIR",
            help="Folder with a QMP socket for each guest. May be repeated. "
            f"Default: where the daemon looks by its configuration, else {paths.QMP_DIR} and this host's libvirt.",
        ),
    ):
        command = option(command)
    return command


def configured() -> Sources:
    """Return where the daemon looks by its configuration, or where guests usually are if there is none.

    A wrong one is the daemon's matter: it is told of, and guests are looked for where they usually are.
    """
    path = Path(os.environ.get("MEMSHARE_CONFIG", paths.CONFIG))
    if not path.parent.is_dir():
        return msgspec.structs.replace(fleet.sources(), daemon=paths.DAEMON_SOCKET)
    from memshare.config import load  # slow to import, and most verbs need nothing else of it

    try:
        config = load(path)
    except MemshareError as error:
        click.echo(f"warning: {error}", err=True)
        return fleet.sources()
    uris = config.connect
    if uris is None:
        uris = fleet.default_uris() if config.qmp_dirs else ()
    return msgspec.structs.replace(
        fleet.sources(map(Path, config.qmp_dirs), uris),
        daemon=Path(config.socket),
        group=config.group,
    )


def state_of(domain: Domain) -> str:
    """The engine's state, or `not-sharing` without one, or `unreachable`."""
    if domain.stats is not None:
        return domain.stats.state
    return "not-sharing" if domain.answered else "unreachable"


def record(domain: Domain) -> Record:
    """What is known of a guest, flat. Every record has all KEYS; what is not known is null."""
    row: dict[str, Value] = dict.fromkeys(KEYS)
    row |= {"domain": domain.name, "source": domain.source, "uuid": domain.uuid}
    if domain.stats is not None:
        row |= msgspec.to_builtins(domain.stats)
        row["saved_bytes"] = domain.stats.saved_bytes
    row["state"] = state_of(domain)
    row["reason"] = domain.problem or (domain.stats.refusal if domain.stats else "")
    return row


def find(domains: Sequence[Domain], name: str, sources: Sources) -> Domain:
    """Return the guest of that name or UUID; NoSuchDomainError, or UsageError when there are several."""
    found = [domain for domain in domains if name in (domain.name, domain.uuid)]
    if not found:
        raise NoSuchDomainError(
            f"{name}: no such guest in {sources}", "memshare list has those that there are"
        )
    if len(found) > 1:
        where = " and ".join(domain.source for domain in found)
        raise UsageError(
            f"{name}: there is one in {where}", "say which with its UUID, or --connect"
        )
    return found[0]


def check_answers(domains: Sequence[Domain], sources: Sources) -> None:
    """Raise UnreachableError when there are guests and none of them answers."""
    if domains and not any(domain.answered for domain in domains):
        raise UnreachableError(
            f"{sources}: no guest answers",
            "are the guests running, and may you open their sockets?",
        )

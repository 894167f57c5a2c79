# SPDX-License-Identifier: GPL-2.0-or-later
"""`memshare status`: the host at a glance."""

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import click
import msgspec

from memshare.cli import guests, options
from memshare.clients import daemon, procfs
from memshare.clients.broker import read_broker
from memshare.clients.fleet import Sources, read_fleet
from memshare.errors import MemshareError
from memshare.model import Broker, Domain
from memshare.render import Format, Record, human_bytes, render_csv, render_json

PAGE_BYTES = 4096
#: How old what the daemon saw may be; it looks each second.
FRESH_SECONDS = 5.0


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """Sums over guests that run memshare. saved_bytes is net: zero and content less overhead."""

    ram_bytes: int
    saved_zero_bytes: int
    saved_content_bytes: int
    overhead_bytes: int
    saved_bytes: int
    scan_cpu_ns: int


class GroupGlance(msgspec.Struct, frozen=True, kw_only=True):
    """A group: what its guests save, and its store, which is None where this broker does not serve it."""

    name: str
    guests: int
    totals: Totals
    store_bytes: int | None = None
    dead_bytes: int | None = None


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """The memory of this host."""

    total_bytes: int
    available_bytes: int
    swap_used_bytes: int


class Glance(msgspec.Struct, frozen=True, kw_only=True):
    """All that is shown. problem is why there is no broker; asked is who told of the guests: they, or the daemon."""

    host: Host
    socket: Path
    broker: Broker | None
    problem: str
    asked: str
    domains: Sequence[Domain]

    def states(self) -> dict[str, int]:
        """How many guests are in each state, most first."""
        return dict(Counter(guests.state_of(domain) for domain in self.domains).most_common())

    def totals(self) -> Totals:
        """Return sums over all guests."""
        return sums(self.domains)

    def groups(self) -> list[GroupGlance]:
        """Return each group that the broker serves or a guest is in."""
        served = {group.name: group for group in self.broker.groups} if self.broker else {}
        members: dict[str, list[Domain]] = {name: [] for name in served}
        for domain in self.domains:
            if domain.stats is not None:
                members.setdefault(domain.stats.group, []).append(domain)
        return [
            GroupGlance(
                name=name,
                guests=len(members[name]),
                totals=sums(members[name]),
                store_bytes=served[name].store_bytes if name in served else None,
                dead_bytes=served[name].slots_dead * PAGE_BYTES if name in served else None,
            )
            for name in sorted(members)
        ]


def sums(domains: Iterable[Domain]) -> Totals:
    """Return sums over those of the guests that run memshare."""
    stats = [domain.stats for domain in domains if domain.stats is not None]
    return Totals(
        **{name: sum(getattr(each, name) for each in stats) for name in Totals.__struct_fields__}
    )


def read_host() -> Host:
    """Return this host's memory as it is now."""
    memory = procfs.meminfo()
    return Host(
        total_bytes=memory["MemTotal"],
        available_bytes=memory["MemAvailable"],
        swap_used_bytes=memory.get("SwapTotal", 0) - memory.get("SwapFree", 0),
    )


async def ask_daemon(socket: Path) -> list[Domain] | None:
    """Return the guests as the daemon has just seen them; None where none runs, or it does not see them now."""
    try:
        view = (await daemon.ask(socket, "view"))["view"]
        if abs(time.time() - view["taken_seconds"]) > FRESH_SECONDS:
            return None
        return msgspec.convert(view["domains"], list[Domain])
    except (MemshareError, msgspec.ValidationError, KeyError, TypeError):
        return None  # of another version, or not for us: the guests themselves know


async def read_guests(sources: Sources) -> tuple[str, list[Domain]]:
    """Return who was asked, and the guests."""
    if sources.daemon and (seen := await ask_daemon(sources.daemon)) is not None:
        return "daemon", seen
    return "guests", await read_fleet(sources)


async def look(sources: Sources, socket: Path) -> Glance:
    """Ask everybody at once. A broker that does not answer is a fact like others."""

    async def ask_broker() -> tuple[Broker | None, str]:
        try:
            return await read_broker(socket), ""
        except MemshareError as error:
            return None, str(error)

    async with asyncio.TaskGroup() as group:
        asked = group.create_task(ask_broker())
        fleet = group.create_task(read_guests(sources))
    broker, problem = asked.result()
    who, domains = fleet.result()
    return Glance(
        host=read_host(),
        socket=socket,
        broker=broker,
        problem=problem,
        asked=who,
        domains=domains,
    )


def flat(glance: Glance) -> Record:
    """Return the host as one record."""
    return {
        **msgspec.to_builtins(glance.host),
        "broker_version": glance.broker.version if glance.broker else None,
        "broker_problem": glance.problem,
        "guests": len(glance.domains),
        "guests_unreachable": sum(not domain.answered for domain in glance.domains),
        **msgspec.to_builtins(glance.totals()),
    }


def document(glance: Glance) -> dict[str, object]:
    """Return all of it, as programs read it. `domains` is what `memshare list` has."""
    broker = glance.broker
    return {
        "host": msgspec.to_builtins(glance.host),
        "broker": {
            "socket": str(glance.socket),
            "version": broker.version if broker else None,
            "protocol": broker.protocol if broker else None,
            "pid": broker.pid if broker else None,
            "problem": glance.problem,
        },
        "guests": {
            "count": len(glance.domains),
            "states": glance.states(),
            "asked": glance.asked,
        },
        "totals": msgspec.to_builtins(glance.totals()),
        "groups": msgspec.to_builtins(glance.groups()),
        "domains": [guests.record(domain) for domain in glance.domains],
    }


def lines(glance: Glance) -> list[str]:
    """Return what people read: a line for each subject, no table, nothing slow to import."""
    host, broker, totals = glance.host, glance.broker, glance.totals()
    swap = f", {human_bytes(host.swap_used_bytes)} swapped out" if host.swap_used_bytes else ""
    states = ", ".join(f"{count} {state}" for state, count in glance.states().items())
    return [
        f"memory   {human_bytes(host.total_bytes)}, {human_bytes(host.available_bytes)} available{swap}",
        f"broker   memshared {broker.version}, pid {broker.pid}, {glance.socket}"
        if broker
        else f"broker   none: {glance.problem}",
        f"guests   {len(glance.domains)}{': ' if states else ''}{states}",
        f"saved    {human_bytes(totals.saved_bytes)} of {human_bytes(totals.ram_bytes)}: "
        f"{human_bytes(totals.saved_zero_bytes)} zero, {human_bytes(totals.saved_content_bytes)} content, "
        f"less {human_bytes(totals.overhead_bytes)} of cost",
        *(f"group    {line_of(group)}" for group in glance.groups()),
    ]


def line_of(group: GroupGlance) -> str:
    """Return what people read of a group."""
    members = f"{group.guests} {'guest' if group.guests == 1 else 'guests'}"
    store = "its store is not this broker's"
    if group.store_bytes is not None and group.dead_bytes is not None:
        store = (
            f"store {human_bytes(group.store_bytes)}, {human_bytes(group.dead_bytes)} of it dead"
        )
    return f"{group.name}: {members}, saves {human_bytes(group.totals.saved_bytes)}; {store}"


@click.command("status")
@guests.of_sources
@options.broker
@options.output
def command(sources: Sources, broker: Path, form: str) -> None:
    """Show this host at a glance: memory, broker, groups, and what sharing saves in all.

    What is saved is net: zero pages and contents, less what sharing itself costs. `memshare list` has a
    line for each guest. When there are guests and none answers the exit code is 3.

    Where the daemon runs it tells what it saw within the last second; else, or with --qmp-dir or --connect, each guest
    is asked.

    \b
    memshare status
    memshare status -o json | jq .totals.saved_bytes
    """
    glance = asyncio.run(look(sources, broker))
    if form == Format.JSON:
        render_json(document(glance), sys.stdout)
    elif form == Format.CSV:
        row = flat(glance)
        render_csv(list(row), [row], sys.stdout)
    else:
        click.echo("\n".join(lines(glance)))
    guests.check_answers(glance.domains, sources)

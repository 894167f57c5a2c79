# SPDX-License-Identifier: GPL-2.0-or-later
"""`memshare audit`: whether what broker and guests count is true."""

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

import click
import msgspec

from memshare.cli import guests, options
from memshare.clients import procfs
from memshare.clients.broker import audit_group, read_broker
from memshare.clients.fleet import Sources, read_fleet
from memshare.crosscheck import Finding, crosscheck, lasting
from memshare.errors import MemshareError
from memshare.model import Broker, GroupAudit
from memshare.render import Column, Format, Record, render, render_json

#: A difference between two looks counts when it is still there at the third.
LOOKS, LOOK_SECONDS = 3, 1.0

COLUMNS = (Column("verdict", "VERDICT"), Column("where", "WHERE"), Column("what", "WHAT"))


class Audit(msgspec.Struct, frozen=True, kw_only=True):
    """What the broker says of its groups, and what guests and broker do not agree on."""

    groups: Sequence[GroupAudit]
    findings: Sequence[Finding]

    def records(self) -> list[Record]:
        """One for each group that is clean, and one for each problem."""
        rows: list[Record] = []
        for group in self.groups:
            where = f"group {group.group}"
            rows += [{"verdict": "FAIL", "where": where, "what": text} for text in group.problems]
            more = group.problem_count - len(group.problems)
            if more:
                rows.append({"verdict": "FAIL", "where": where, "what": f"{more} more like these"})
            if not group.problem_count:
                what = (
                    f"{group.slots} slots, {group.grants} grants, {group.entries} entries of the table; "
                    f"bytes of {group.hashed_slots} slots"
                )
                rows.append({"verdict": "PASS", "where": where, "what": what})
        rows += [
            {"verdict": "FAIL", "where": each.where, "what": each.what} for each in self.findings
        ]
        return rows

    @property
    def problem_count(self) -> int:
        """How many problems there are in all."""
        return sum(group.problem_count for group in self.groups) + len(self.findings)


def older_pids(broker: Broker) -> set[int]:
    """Return the clients' processes that were there before the broker; one that has ended is none."""
    born = {}
    for pid in {broker.pid, *(each.pid for group in broker.groups for each in group.sessions)}:
        try:
            born[pid] = procfs.start_ticks(pid)
        except OSError:
            continue
    started = born.pop(broker.pid, None)
    return set(born) if started is None else {pid for pid in born if born[pid] < started}


async def compare(sources: Sources, socket: Path) -> list[Finding]:
    """Return on what guests and broker disagree, and go on disagreeing."""
    findings: list[Finding] = []
    for number in range(LOOKS):
        domains = await read_fleet(sources)
        broker = await read_broker(socket)
        seen = crosscheck(domains, broker, older_pids(broker))
        findings = seen if number == 0 else lasting(findings, seen)
        if not findings:
            break
        if number < LOOKS - 1:
            await asyncio.sleep(LOOK_SECONDS)
    return findings


async def look(sources: Sources, socket: Path) -> Audit:
    """Ask the broker about each group, then compare with the guests."""
    broker = await read_broker(socket)
    groups = [await audit_group(socket, group.name) for group in broker.groups]
    return Audit(groups=groups, findings=await compare(sources, socket))


@click.command("audit")
@guests.of_sources
@options.broker
@options.output
def command(sources: Sources, broker: Path, form: str) -> None:
    """Check that what broker and guests count is true.

    The broker adds up its grants, slots and table anew, and compares the bytes of slots with the hash of
    what was shared: of 64 MiB a group, another sample each time. Then the guests' figures are compared with the
    broker's. Nothing is changed. The exit code is 1 when there is a problem.

    \b
    memshare audit
    memshare audit -o json | jq .problem_count
    """
    audit = asyncio.run(look(sources, broker))
    if form == Format.JSON:
        render_json(
            {
                "problem_count": audit.problem_count,
                "groups": msgspec.to_builtins(audit.groups),
                "disagreements": msgspec.to_builtins(audit.findings),
            },
            sys.stdout,
        )
    else:
        render("checks", COLUMNS, audit.records(), Format(form), sys.stdout)
    if audit.problem_count:
        count = audit.problem_count
        raise MemshareError(f"{count} {'problem' if count == 1 else 'problems'} found")

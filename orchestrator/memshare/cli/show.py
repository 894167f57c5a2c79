# SPDX-License-Identifier: GPL-2.0-or-later
"""`memshare show`: everything that is known of one guest."""

import asyncio
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import click

from memshare.cli import guests, options
from memshare.clients.broker import read_broker
from memshare.clients.fleet import Sources, read_fleet
from memshare.crosscheck import session_of
from memshare.errors import MemshareError, UnreachableError
from memshare.model import Domain, Session
from memshare.render import Format, Record, Unit, Value, human, render_csv, render_json


class Fact(NamedTuple):
    """A key of the record, what people call it, how it is shown, and what it means."""

    key: str
    name: str
    unit: Unit
    meaning: str = ""


UNLIMITED = (1 << 64) - 1  # a rate
TEXT, COUNT, BYTES, PAGES, TIME = Unit.TEXT, Unit.COUNT, Unit.BYTES, Unit.PAGES, Unit.NANOSECONDS

SECTIONS = {
    "Guest": (
        Fact("domain", "name", TEXT),
        Fact("uuid", "uuid", TEXT),
        Fact("source", "found in", TEXT),
        Fact("state", "state", TEXT),
        Fact("reason", "reason", TEXT),
        Fact("group", "group", TEXT, "shares with guests of this group only"),
        Fact("mode", "mode", TEXT, "off, zero: only zeros are given back, content: all"),
        Fact("version", "plugin", TEXT),
        Fact("protocol", "protocol", TEXT, "spoken with the broker"),
    ),
    "What its owner wants": (
        Fact("wanted_group", "group", TEXT),
        Fact("wanted_mode", "mode", TEXT),
        Fact("wanted_min_rate", "least rate", COUNT, "pages a second"),
        Fact("wanted_max_rate", "highest rate", COUNT, "pages a second; none: no ceiling"),
        Fact("wanted_weight", "weight", COUNT),
    ),
    "Memory": (
        Fact("ram_bytes", "RAM", BYTES),
        Fact("present_pages", "present", PAGES, "in memory at the last visit"),
        Fact("shared_pages", "shared", PAGES, "mapped from the store, read-only until it writes"),
        Fact(
            "broken_pages",
            "broken",
            PAGES,
            "written since: private again, in a mapping of the store",
        ),
        Fact("zero_pages", "zero", PAGES, "given back, and still not touched"),
        Fact("unique_pages", "unique", PAGES, "unlike all others"),
        Fact("volatile_pages", "volatile", PAGES, "change too often to be worth a hash"),
        Fact("tracked_pages", "tracked", PAGES, "the kernel tells when they are written"),
    ),
    "Savings": (
        Fact(
            "saved_content_bytes",
            "content",
            BYTES,
            "each page of the store split among its sharers",
        ),
        Fact("saved_zero_bytes", "zero", BYTES),
        Fact("overhead_bytes", "cost", BYTES, "tables of the kernel and ours"),
        Fact("saved_bytes", "net", BYTES, "content and zero less cost"),
    ),
    "Scanning": (
        Fact("scan_rate_pages", "rate", COUNT, "pages a second; 0: paused"),
        Fact("cpu_limit_percent", "CPU limit", COUNT, "percent of a core"),
        Fact("scan_cpu_ns", "CPU used", TIME, "by both threads, since the start"),
        Fact("passes", "passes", COUNT, "visits of all its RAM"),
        Fact("pass_age_ns", "last pass", TIME, "since the last one has ended"),
        Fact("scanned_pages", "scanned", COUNT, "pages, ever"),
        Fact("skipped_pages", "skipped", COUNT, "nobody had written to them"),
        Fact("changed_pages", "written", COUNT, "had changed since the visit before"),
        Fact("hashed_pages", "hashed", COUNT),
        Fact("merged_pages", "merged", COUNT),
        Fact("zeroed_pages", "zeroed", COUNT),
        Fact("breaks", "breaks", COUNT, "writes to shared pages"),
        Fact("rebuilt_pages", "rebuilt", COUNT, "made plain memory again"),
        Fact("compare_failures", "changed", COUNT, "had changed between hash and comparison"),
        Fact("pinned_skips", "pinned", COUNT, "in use by a device when they should move"),
    ),
    "What the guest may notice": (
        Fact("windows", "windows", COUNT, "moments in which a touched page makes it wait"),
        Fact("window_half", "half took", TEXT),
        Fact("window_most", "99.9% took", TEXT),
        Fact("slept_faults", "waits", COUNT, "of which are known to have hit one"),
        Fact("window_time_ns", "histogram", TEXT, "from 1 us on, each column twice the last"),
    ),
    "Mappings": (
        Fact("mappings", "mappings", COUNT),
        Fact(
            "mappings_limit",
            "budget",
            COUNT,
            "sharing stops there: vm.max_map_count, less a reserve",
        ),
    ),
    "In the broker": (
        Fact("broker_session", "session", TEXT),
        Fact("broker_pid", "process", COUNT),
        Fact("broker_grants", "grants", COUNT, "pages that it may map"),
        Fact("broker_cost_bytes", "its part", BYTES, "of the store"),
        Fact("broker_problem", "problem", TEXT),
    ),
}


def window_bound(counts: Sequence[int], ratio: float) -> str:
    """Say below which time that ratio of all windows stayed; the histogram's steps are that exact."""
    total, seen = sum(counts), 0
    for step, count in enumerate(counts):
        seen += count
        if total and seen >= ratio * total:
            return f"less than {2 << step} us"
    return ""


def everything(domain: Domain, session: Session | None, problem: str) -> Record:
    """Return the guest as one record: as `list` has it, and what its owner wants, and what the broker says."""
    row: dict[str, Value] = dict(guests.record(domain))
    if domain.option is not None:
        row["wanted_group"] = domain.group
        row["wanted_mode"] = domain.option.mode.value
        row["wanted_min_rate"] = domain.option.min_rate
        row["wanted_max_rate"] = domain.option.max_rate
        row["wanted_weight"] = domain.option.weight
    if session is not None:
        row["broker_session"] = session.state
        row["broker_pid"] = session.pid
        row["broker_grants"] = session.grants
        row["broker_cost_bytes"] = session.cost_bytes
    row["broker_problem"] = problem
    known = (fact.key for facts in SECTIONS.values() for fact in facts if fact.unit is not TEXT)
    return row | {key: row.get(key) for key in known}


def lines(row: Record) -> Iterator[str]:
    """Yield what people read; sections of which nothing is known are left out."""
    counts = row.get("window_time_ns")
    if isinstance(counts, list):
        halves = {
            "window_half": window_bound(counts, 0.5),
            "window_most": window_bound(counts, 0.999),
        }
        row = {**row, **halves}
    gap = ""
    for title, facts in SECTIONS.items():
        known = [fact for fact in facts if row.get(fact.key) not in (None, "")]
        if not known:
            continue
        yield f"{gap}{title}"
        gap = "\n"
        for fact in known:
            number = row[fact.key]
            value = "unlimited" if number == UNLIMITED else human(number, fact.unit)
            yield f"  {fact.name:<14}{value:<14}  {fact.meaning}".rstrip()


async def look(sources: Sources, name: str, socket: Path) -> Record:
    """Return everything about one guest."""
    domain = guests.find(await read_fleet(sources), name, sources)
    session, problem = None, ""
    if domain.stats is not None:
        try:
            session = session_of(domain, await read_broker(socket))
        except MemshareError as error:
            problem = str(error)
    return everything(domain, session, problem)


@click.command("show")
@click.argument("name", metavar="DOMAIN")
@guests.of_sources
@options.broker
@options.output
def command(name: str, sources: Sources, broker: Path, form: str) -> None:
    """Show everything about one guest, by its name or UUID, and what it means.

    The exit code is 4 when there is no such guest, and 3 when it does not answer.

    \b
    memshare show web1
    memshare show web1 -o json | jq .guest.breaks
    """
    row = asyncio.run(look(sources, name, broker))
    if form == Format.JSON:
        render_json({"guest": row}, sys.stdout)
    elif form == Format.CSV:
        render_csv(list(row), [row], sys.stdout)
    else:
        click.echo("\n".join(lines(row)))
    if row["state"] == "unreachable":
        raise UnreachableError(f"{row['domain']}: {row['reason']}")

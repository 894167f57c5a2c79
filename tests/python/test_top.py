# SPDX-License-Identifier: GPL-2.0-or-later
"""`memshare top`: rates, keys, and what it prints for programs."""

import asyncio
import csv
import io
import itertools
import os
import pty
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.lib.documents import parsed

from fakes.fake_qmp import fake_qmp
from memshare.cli.board import Board, sparkline
from memshare.growth import Look, rates
from memshare.model import Domain, PageStats
from samples import stats
from test_status import memshare


def guest(name: str, source: str = "/q", **figures: Any) -> Domain:
    return Domain(name=name, source=source, stats=msgspec.convert(stats(**figures), PageStats))


def look(seconds: float, *domains: Domain) -> Look:
    return Look(taken_ns=int(seconds * 1e9), domains=domains)


def board(*looks: Look) -> Board:
    made = Board()
    for each in looks:
        made.see(each)
    return made


def names(of: Board, key: str = "domain") -> list[Any]:
    return [row[key] for row in of.rows()]


# Rates


def test_rates_are_differences_over_time() -> None:
    before = look(1, guest("a", scanned_pages=100, breaks=4, merged_pages=1, zeroed_pages=2))
    after = guest(
        "a", scanned_pages=300, breaks=5, merged_pages=2, zeroed_pages=5, scan_cpu_ns=10**9
    )
    (rate,) = rates(before, look(3, after)).values()
    assert rate.scanned_pages_per_second == 100
    assert rate.merged_pages_per_second == 2
    assert rate.breaks_per_second == 0.5
    assert rate.scan_cpu_ratio == 0.5


@pytest.mark.parametrize(
    "before",
    [
        Domain(name="a", source="/q"),
        guest("a", source="/r"),
        guest("a", breaks=6),
    ],
    ids=["no figures", "another guest of that name", "started anew"],
)
def test_no_rate_without_two_looks_at_one_process(before: Domain) -> None:
    assert rates(look(1, before), look(2, guest("a", breaks=5))) == {}


# Board


def test_a_sparkline_is_as_high_as_its_highest() -> None:
    assert sparkline([0, 1, 4, 8]) == " ▂▅█"
    assert sparkline([0, 0]) == "  "
    assert sparkline([]) == ""


def test_keys_sort_and_reverse() -> None:
    shown = board(
        look(1, guest("a", ram_bytes=1), guest("b", ram_bytes=9), Domain(name="c")),
    )
    assert names(shown) == ["a", "b", "c"]
    shown.press("r")
    assert names(shown) == ["c", "b", "a"]
    for key in ">>>":
        shown.press(key)
    assert shown.columns[3].title == "RAM▼"
    assert names(shown) == ["b", "a", "c"], "the highest first, the unknown last"
    shown.press("r")
    assert names(shown) == ["a", "b", "c"]
    for key in "<<<<s":
        shown.press(key)
    assert shown.columns[0].title == "DOMAIN▲"
    shown.press("x")
    assert not shown.is_done
    shown.press("q")
    assert shown.is_done


def test_groups_are_sums_of_their_guests() -> None:
    shown = board(
        look(1, guest("a", ram_bytes=1), guest("b", ram_bytes=2), guest("c", group="x")),
        look(
            2,
            guest("a", ram_bytes=1, breaks=3),
            guest("b", ram_bytes=2, breaks=1),
            guest("c", group="x"),
            guest("new", group="y"),
            Domain(name="plain"),
        ),
    )
    shown.press("g")
    demo, x, y = shown.rows()
    assert (demo["group"], demo["guests"], demo["ram_bytes"]) == ("demo", 2, 3)
    assert (demo["breaks_per_second"], demo["history"]) == (4, "█")
    assert (x["breaks_per_second"], y.get("breaks_per_second")) == (0, None)
    assert y["history"] == ""
    shown.press("g")
    assert len(shown.rows()) == 5


def test_a_guest_that_left_is_gone_and_forgotten() -> None:
    shown = board(look(1, guest("a")), look(2, guest("a", breaks=1)), look(3), look(4, guest("a")))
    (row,) = shown.rows()
    assert row["history"] == ""


# The command


async def test_without_a_terminal_it_names_list() -> None:
    code, out, err = await memshare("top")
    assert (code, out) == (2, "")
    assert err.splitlines()[0] == "error: top needs a terminal"
    assert "memshare list" in err


async def test_batches_have_rates_and_one_heading(tmp_path: Path) -> None:
    breaks = itertools.count()
    counting = {"memshare0": {"stats": lambda: stats(breaks=next(breaks))}}
    where = ("--qmp-dir", str(tmp_path), "-d", "0.1", "-n", "2")
    async with fake_qmp(tmp_path / "a.qmp", "web1", counting):
        code, out, err = await memshare("top", *where, "-o", "json")
        assert (code, err) == (0, "")
        looks = [parsed("top", line) for line in out.splitlines()]
        assert [(each["schema"], each["look"]) for each in looks] == [(1, 0), (1, 1)]
        assert all(each["domains"][0]["breaks_per_second"] > 0 for each in looks)
        code, out, _ = await memshare("top", *where, "-o", "csv")
    assert code == 0
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["look"] for row in rows] == ["0", "1"]
    assert all(float(row["breaks_per_second"]) > 0 for row in rows)


async def test_on_a_terminal_it_shows_guests_takes_keys_and_puts_the_terminal_back(
    tmp_path: Path,
) -> None:
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)
    async with fake_qmp(tmp_path / "a.qmp", "web1", {"memshare0": {"stats": stats()}}):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", "from memshare.cli import main; main()"),
            *("top", "--qmp-dir", str(tmp_path)),
            stdin=theirs,
            stdout=theirs,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "200", "LINES": "20"},
        )
        await until_shown(ours, "web1")
        os.write(ours, b"g")
        await until_shown(ours, "GUESTS")
        os.write(ours, b"q")
        assert await process.wait() == 0
    await until_shown(ours, "\x1b[?1049l")
    os.close(ours)
    os.close(theirs)


async def until_shown(terminal: int, text: str) -> None:
    """Read what a terminal is sent until it has that text."""
    loop, seen, arrived = asyncio.get_running_loop(), bytearray(), asyncio.Event()

    def read() -> None:
        seen.extend(os.read(terminal, 65536))
        arrived.set()

    loop.add_reader(terminal, read)
    try:
        async with asyncio.timeout(60):
            while text.encode() not in seen:
                await arrived.wait()
                arrived.clear()
    finally:
        loop.remove_reader(terminal)

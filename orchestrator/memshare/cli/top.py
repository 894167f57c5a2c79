# SPDX-License-Identifier: GPL-2.0-or-later
"""`memshare top`: what guests do right now, on a terminal or for programs."""

import asyncio
import os
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import click

from memshare.cli import guests, options
from memshare.cli.board import HELP, Board
from memshare.clients.fleet import Sources, read_fleet
from memshare.errors import UnreachableError, UsageError
from memshare.growth import Look, Rates
from memshare.render import Format, render_csv, render_json, table_of

if TYPE_CHECKING:
    from rich.console import Group


async def take(sources: Sources) -> Look:
    """Look at all guests."""
    domains = await read_fleet(sources)
    guests.check_answers(domains, sources)
    return Look(taken_ns=time.monotonic_ns(), domains=domains)


async def batch(sources: Sources, form: Format, delay_seconds: float, looks: int | None) -> None:
    """Print the guests again and again: JSON one object a line, CSV with one heading for all.

    Rates need two looks, so the first is not printed.
    """
    board, number = Board(), 0
    keys = ["look", *guests.KEYS, *Rates.__struct_fields__]
    if form is Format.CSV:
        render_csv(keys, [], sys.stdout)
    board.see(await take(sources))
    while looks is None or number < looks:
        await asyncio.sleep(delay_seconds)
        board.see(await take(sources))
        rows = board.guests()
        if form is Format.JSON:
            render_json({"look": number, "domains": rows}, sys.stdout, is_one_line=True)
        else:
            numbered = [{"look": number, **row} for row in rows]
            render_csv(keys, numbered, sys.stdout, has_heading=False)
        sys.stdout.flush()
        number += 1


@contextmanager
def keyboard(on_key: Callable[[str], None]) -> Iterator[None]:
    """Have each key told at once, and not shown; the terminal is put back, however this ends."""
    loop, fd = asyncio.get_running_loop(), sys.stdin.fileno()
    before = termios.tcgetattr(fd)

    def read() -> None:
        for key in os.read(fd, 64).decode(errors="replace"):
            on_key(key)

    tty.setcbreak(fd)
    loop.add_reader(fd, read)
    try:
        yield
    finally:
        loop.remove_reader(fd)
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def picture(board: Board, problem: str) -> "Group":
    """Return what the screen shows."""
    from rich.console import Group
    from rich.text import Text

    return Group(
        Text(f"{time.strftime('%H:%M:%S')}   {problem or HELP}"),
        table_of(board.columns, board.rows()),
    )


async def live(sources: Sources, delay_seconds: float, looks: int | None) -> None:
    """Show the guests until told to stop. Sources that go away are said so, and asked again."""
    from rich.live import Live

    board, problem = Board(), ""
    board.see(await take(sources))
    pressed = asyncio.Event()

    def on_key(key: str) -> None:
        board.press(key)
        pressed.set()

    async def watch() -> None:
        nonlocal problem
        number = 1
        while looks is None or number < looks:
            await asyncio.sleep(delay_seconds)
            try:
                board.see(await take(sources))
                problem = ""
            except UnreachableError as error:
                problem = str(error)
            number += 1
            pressed.set()
        board.press("q")
        pressed.set()

    with Live(screen=True, auto_refresh=False) as screen, keyboard(on_key):
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(watch())
            while not board.is_done:
                screen.update(picture(board, problem), refresh=True)
                await pressed.wait()
                pressed.clear()
            watching.cancel()


@click.command("top")
@guests.of_sources
@click.option(
    "-d",
    "--delay",
    "delay_seconds",
    type=click.FloatRange(min=0.1),
    default=2.0,
    show_default=True,
    help="Seconds from look to look.",
)
@click.option("-n", "--iterations", "looks", type=click.IntRange(min=1), help="End after so many.")
@options.output
def command(sources: Sources, delay_seconds: float, looks: int | None, form: str) -> None:
    """Show what guests do right now: pages scanned, merged and broken a second, CPU, and lately.

    Keys: q quits; < and > (or s) move to another column to sort by, r reverses; g shows groups instead of
    guests. MERGED/S counts zero pages too, CPU is percent of one core, BREAKS draws breaks/s of the
    last looks. With -o json or csv it prints instead, and needs no terminal.

    \b
    memshare top
    memshare top -n 1 -d 10 -o csv                # rates over ten seconds, once
    memshare top -o json | jq '.domains[] | [.domain, .breaks_per_second]'
    """
    if form != Format.TABLE:
        asyncio.run(batch(sources, Format(form), delay_seconds, looks))
    elif sys.stdin.isatty() and sys.stdout.isatty():
        with suppress(KeyboardInterrupt):
            asyncio.run(live(sources, delay_seconds, looks))
    else:
        raise UsageError(
            "top needs a terminal", "memshare list prints once, top -o json or csv again and again"
        )

# SPDX-License-Identifier: GPL-2.0-or-later
"""What pause, drain and resume have in common: which guests, and how they are held.

The guests are asked directly, so that these verbs work without the daemon. What they say is written down first
(`clients/holds.py`), so that a daemon does not undo it, nor a restart.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Container, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import click
import msgspec

from memshare.cli import options
from memshare.clients.monitor import Monitor, NotSharingError
from memshare.clients.sources import Found, sources_of, union
from memshare.config import Config, load
from memshare.errors import MemshareError, NoSuchDomainError, UnreachableError, UsageError

Command = Callable[..., None]


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """Whom a verb is about: some guests by name, or all, those that start later too."""

    guests: Sequence[str]
    everyone: bool
    config: Config

    @property
    def state_dir(self) -> Path:
        """Where holds are."""
        return Path(self.config.state_dir)

    @property
    def names(self) -> Sequence[str | None]:
        """What is held, in the words of `clients/holds.py`."""
        return [None] if self.everyone else self.guests


def of_guests(verb: Command) -> Command:
    """Add the options that each of the verbs has; they reach it as one Target."""

    @wraps(verb)
    def command(*, guests: tuple[str, ...], everyone: bool, path: Path, **others: Any) -> None:
        if bool(guests) == everyone:
            raise UsageError("name guests, or say --all" if not everyone else "--all, or names")
        verb(Target(guests=guests, everyone=everyone, config=load(path)), **others)

    for option in (
        options.config,
        click.option("--all", "everyone", is_flag=True, help="All, and those that start later."),
        click.argument("guests", metavar="[DOMAIN]...", nargs=-1),
    ):
        command = option(command)
    return command


@asynccontextmanager
async def opened(
    target: Target, known: Container[str] = ()
) -> AsyncIterator[tuple[list[Found], bool]]:
    """Find the guests that are meant and run, and say whether these are all.

    Raises NoSuchDomainError for one that does not run and is not known. What is said of all guests is said although a
    place cannot be asked: that is told at the end.
    """
    async with AsyncExitStack() as stack:
        sources = sources_of(target.config)
        for source in sources:
            stack.push_async_callback(source.close)
        lists, lost = [], []
        for source in sources:
            try:
                lists.append(await source.guests())
            except UnreachableError as error:
                lost.append(error)
        found = {guest.domain.name: guest for guest in union(lists)}
        absent = [name for name in target.guests if name not in found]
        if lost and absent:
            raise lost[0]  # it may be there
        for name in absent:
            if name not in known:
                raise NoSuchDomainError(f"{name}: no such guest runs here", "memshare list")
        names = found if target.everyone else target.guests
        yield [found[name] for name in names if name in found], not lost
        for unasked in lost:
            click.echo(f"error: {unasked}", err=True)
        if lost:
            raise UnreachableError(
                "some guests could not be asked", "say it again when they can be"
            )


async def for_each(guests: Sequence[Found], do: Callable[[Found], Awaitable[str]]) -> None:
    """Do something to all guests at once and say how it went; one that fails keeps no other from it."""

    async def attempt(guest: Found) -> MemshareError | None:
        try:
            said = await do(guest)
        except MemshareError as error:
            name = guest.domain.name
            text = str(error) if str(error).startswith(f"{name}: ") else f"{name}: {error}"
            return type(error)(text, error.hint)
        click.echo(f"{guest.domain.name}: {said}", err=True)
        return None

    errors = [error for error in await asyncio.gather(*map(attempt, guests)) if error is not None]
    if len(errors) == 1:
        raise errors[0]
    for error in errors:
        click.echo(f"error: {error}", err=True)
    if errors:
        raise MemshareError(f"{len(errors)} of {len(guests)} guests could not be told")


async def is_told(monitor: Monitor, name: str, value: str | int) -> bool:
    """Set a property of a guest's plugin; False when it has none.

    Said before anything is asked: a guest whose figures nobody understands has to stop like any other.
    """
    try:
        await monitor.set(name, value)
    except UnreachableError:
        raise
    except MemshareError as refused:
        try:
            await monitor.stats()
        except NotSharingError:
            return False
        except MemshareError:
            pass
        raise refused from None
    return True

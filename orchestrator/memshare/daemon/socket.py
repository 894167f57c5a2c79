# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon's socket: what it saw and decided, one JSON object a line in each direction.

    {"command":"view"}                                        figures of the last look
    {"command":"explain","domain":D}                          why a guest has its rate
    {"command":"fits","ram_bytes":N,"count":N,"like":D}       whether more guests are safe

Nothing can be changed by it: owners change options, operators hold guests. Answers have `ok`; a refusal has
`error`, perhaps `hint`, and `exit_code`.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import msgspec

from memshare.clients.holds import read_holds
from memshare.config import Config
from memshare.daemon.state import State
from memshare.daemon.view import View
from memshare.errors import MemshareError, NoSuchDomainError, UnreachableError, UsageError
from memshare.policy import explain, fits

LINE_BYTES_MAX = 64 << 10
#: At the same time, for whoever opens connections and leaves them must not take all descriptors of the daemon.
CLIENTS_MAX = 64


class ViewCommand(msgspec.Struct, frozen=True, tag_field="command", tag="view"):
    """Figures of the last look."""


class ExplainCommand(msgspec.Struct, frozen=True, tag_field="command", tag="explain"):
    """Why a guest has its rate."""

    domain: str


class FitsCommand(msgspec.Struct, frozen=True, tag_field="command", tag="fits"):
    """Whether more guests are safe."""

    ram_bytes: Annotated[int, msgspec.Meta(gt=0, le=1 << 60)]
    count: Annotated[int, msgspec.Meta(gt=0, le=1 << 20)] = 1
    like: str | None = None


Command = ViewCommand | ExplainCommand | FitsCommand


class Answerer:
    """Answers commands from the last look. view returns it; None before the first."""

    def __init__(self, config: Config, state: State, view: Callable[[], View | None]) -> None:
        """Keep where to look."""
        self._config = config
        self._state = state
        self._view = view

    def answer(self, line: bytes) -> dict[str, Any]:
        """Return the answer to one line, whatever it is."""
        try:
            try:
                command = msgspec.json.decode(line, type=Command)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise UsageError(f"not a command: {error}") from error
            return {"ok": True, **self._run(command)}
        except MemshareError as error:
            return {
                "ok": False,
                "error": str(error),
                "hint": error.hint,
                "exit_code": error.exit_code,
            }

    def _run(self, command: Command) -> Mapping[str, Any]:
        view = self._view()
        if view is None:
            raise UnreachableError("has not looked at its guests yet", "it has just been started")
        match command:
            case ExplainCommand():
                return self._explain(command, view)
            case FitsCommand():
                return self._fits(command, view)
        return {"view": msgspec.to_builtins(_shown(view))}

    def _explain(self, command: ExplainCommand, view: View) -> Mapping[str, Any]:
        name = command.domain
        domain = {domain.name: domain for domain in view.domains}.get(name)
        if domain is None:
            raise NoSuchDomainError(f"{name}: no such guest runs here")
        answer: dict[str, Any] = {"domain": name, "held": None, "rate": None}
        if (hold := read_holds(Path(self._config.state_dir)).of(name)) is not None:
            answer["held"] = hold.verb.value
        if name in view.decision.rates:
            rate = view.decision.rates[name]
            answer["rate"] = {
                "pages": rate.pages,
                "cpu_limit_percent": rate.cpu_limit_percent,
                "bound": rate.bound.value,
                "value": rate.value,
                "yield_bytes": rate.yield_bytes,
                "urgency": rate.pressure.urgency,
                "budget_cpus": rate.budget_cpus,
            }
        if any(guest.domain == name for guest in view.snapshot.guests):
            answer["reason"] = explain(name, view.snapshot, view.decision)
        else:
            answer["reason"] = f"no rate is set: {domain.problem or 'it has not answered yet'}"
        return answer

    def _fits(self, command: FitsCommand, view: View) -> Mapping[str, Any]:
        like = None
        if command.like is not None:
            guests = {guest.domain: guest for guest in view.snapshot.guests}
            like = guests.get(command.like)
            if like is None:
                raise NoSuchDomainError(f"{command.like}: no such guest shares here")
        fit = fits(
            command.ram_bytes,
            view.snapshot,
            self._state.policy,
            self._config.policy,
            like,
            command.count,
        )
        return {"fit": msgspec.to_builtins(fit)}


def _shown(view: View) -> Mapping[str, Any]:
    """Return a view as it is told: without what the policy only remembers."""
    decision = view.decision
    return {
        "taken_seconds": view.taken_seconds,
        "domains": view.domains,
        "host": view.snapshot.host,
        "urgency": decision.pressure.urgency,
        "cause": decision.pressure.cause,
        "stake": decision.stake,
        "step": decision.step.name.lower(),
        "headroom_bytes": view.snapshot.host.headroom_bytes,
        "rates": {name: rate.pages for name, rate in decision.rates.items()},
        "broker": view.broker,
        "ksm": view.ksm,
        "sources": view.sources,
        "actions": view.actions,
    }


@asynccontextmanager
async def serving(path: Path, answerer: Answerer) -> AsyncIterator[None]:
    """Listen at the path, for root and the socket's group. MemshareError when that cannot be.

    Connections end with it: the next configuration has another answerer.
    """
    clients: set[asyncio.StreamWriter] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(clients) >= CLIENTS_MAX:
            writer.close()
            return
        clients.add(writer)
        try:
            while line := await reader.readline():
                writer.write(msgspec.json.encode(answerer.answer(line)) + b"\n")
                await writer.drain()
        except (ValueError, OSError):
            pass  # a line without end, or the peer has gone
        finally:
            clients.discard(writer)
            writer.close()

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # of a daemon that is dead: there is one at a time
        before = os.umask(0o117)
        try:
            server = await asyncio.start_unix_server(serve, str(path), limit=LINE_BYTES_MAX)
        finally:
            os.umask(before)
    except OSError as error:
        raise MemshareError(f"{path}: {(error.strerror or str(error)).lower()}") from error
    try:
        yield
    finally:
        server.close()
        for writer in clients:
            writer.transport.abort()
        path.unlink(missing_ok=True)

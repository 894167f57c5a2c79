# SPDX-License-Identifier: GPL-2.0-or-later
"""The client of qemu-guest-agent, against one made here that answers late, wrongly, or not at all."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from memshare.errors import UnreachableError
from memshare.experiment import agent as agents
from memshare.experiment.agent import Agent, AgentError

Answer = Callable[[str, dict[str, Any]], Any]
SILENCE = object()


@asynccontextmanager
async def serving(folder: Path, answer: Answer) -> AsyncIterator[Agent]:
    """Serve what answer returns for a command: a value, bytes as they are, or an exception's words.

    SILENCE is an answer that comes late: before the next one to guest-sync-delimited.
    """
    late = b""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal late
        while line := await reader.readline():
            request = json.loads(line.rpartition(b"\xff")[2])
            arguments = request.get("arguments", {})
            if request["execute"] == "guest-sync-delimited":
                reply = late + b"\xff" + json.dumps({"return": arguments["id"]}).encode() + b"\n"
                late = b""
            else:
                found = answer(request["execute"], arguments)
                if found is SILENCE:
                    late += b'{"return": "late"}\n'
                    continue
                if isinstance(found, Exception):
                    found = {"error": {"class": "GenericError", "desc": str(found)}}
                    reply = json.dumps(found).encode() + b"\n"
                elif isinstance(found, bytes):
                    reply = found
                else:
                    reply = json.dumps({"return": found}).encode() + b"\n"
            writer.write(reply)
            if not reply:
                break
        writer.close()

    path = folder / "agent"
    async with await asyncio.start_unix_server(serve, str(path)):
        agent = await agents.connect(path, "guest g")
        try:
            yield agent
        finally:
            agent.close()


def ended(code: int, output: str = "", errors: str = "") -> dict[str, Any]:
    """Return a guest-exec-status of a program that has ended."""
    return {
        "exited": True,
        "exitcode": code,
        "out-data": base64.b64encode(output.encode()).decode(),
        "err-data": base64.b64encode(errors.encode()).decode(),
    }


async def test_what_was_left_over_is_skipped(tmp_path: Path) -> None:
    def answer(command: str, arguments: dict[str, Any]) -> Any:
        return {"command": command, **arguments}

    async with serving(tmp_path, answer) as agent:
        assert await agent.execute("guest-info", some_thing=1) == {
            "command": "guest-info",
            "some-thing": 1,
        }
        agent._reader.feed_data(b'{"return": "old"}\n{"cut')
        agent._is_in_step = False
        assert (await agent.execute("guest-ping"))["command"] == "guest-ping"


async def test_after_a_lost_answer_the_next_one_is_the_right_one(tmp_path: Path) -> None:
    answers = iter([SILENCE, "right"])
    async with serving(tmp_path, lambda *_: next(answers)) as agent:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await agent.execute("guest-ping")
        assert await agent.execute("guest-ping") == "right"


async def test_a_program_is_waited_for(tmp_path: Path) -> None:
    states = iter([{"exited": False}, {"exited": False}, ended(0, "good\n")])

    def answer(command: str, arguments: dict[str, Any]) -> Any:
        if command == "guest-exec":
            assert arguments == {"path": "/bin/x", "arg": ["a", "b"], "capture-output": True}
            return {"pid": 7}
        assert arguments == {"pid": 7}
        return next(states)

    async with serving(tmp_path, answer) as agent:
        assert await agent.output_of("/bin/x", "a", "b") == "good\n"


async def test_a_program_that_fails_is_one_line(tmp_path: Path) -> None:
    def answer(command: str, _arguments: dict[str, Any]) -> Any:
        return {"pid": 7} if command == "guest-exec" else ended(3, "", "first\nno such load\n")

    async with serving(tmp_path, answer) as agent:
        assert (await agent.run("/bin/x")).code == 3
        with pytest.raises(AgentError, match=r"guest g: /bin/x a: code 3: no such load$"):
            await agent.output_of("/bin/x", "a")


async def test_a_program_without_end_is_given_up(tmp_path: Path) -> None:
    def answer(command: str, _arguments: dict[str, Any]) -> Any:
        return {"pid": 7} if command == "guest-exec" else {"exited": False}

    async with serving(tmp_path, answer) as agent:
        with pytest.raises(AgentError, match=r"guest g: /bin/x: not done in 0 s"):
            await agent.run("/bin/x", seconds=0.2)


async def test_a_program_that_a_signal_ended_did_not_succeed(tmp_path: Path) -> None:
    def answer(command: str, _arguments: dict[str, Any]) -> Any:
        return {"pid": 7} if command == "guest-exec" else {"exited": True, "signal": 9}

    async with serving(tmp_path, answer) as agent:
        with pytest.raises(AgentError, match="code -9: it said nothing"):
            await agent.output_of("/bin/x")


async def test_the_agents_own_words(tmp_path: Path) -> None:
    async with serving(tmp_path, lambda *_: ValueError("not enabled")) as agent:
        with pytest.raises(AgentError, match="guest g: guest-exec: not enabled"):
            await agent.run("/bin/x")


@pytest.mark.parametrize(
    ("reply", "kind", "complaint"),
    [
        (b"", UnreachableError, "its agent went away"),
        (b"nonsense\n", AgentError, "its agent said no JSON"),
    ],
)
async def test_an_agent_that_goes_away_or_mad(
    reply: bytes, kind: type[Exception], complaint: str, tmp_path: Path
) -> None:
    async with serving(tmp_path, lambda *_: reply) as agent:
        with pytest.raises(kind, match=f"guest g: {complaint}"):
            await agent.execute("guest-ping")


async def test_ready_waits_for_the_first_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agents, "SYNC_SECONDS", 0.1)
    asked = 0

    def answer(*_: Any) -> Any:
        nonlocal asked
        asked += 1
        return {} if asked == 3 else SILENCE

    async with serving(tmp_path, answer) as agent:
        await agent.ready()
    assert asked == 3

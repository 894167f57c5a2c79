# SPDX-License-Identifier: GPL-2.0-or-later
"""Parts of the daemon, each alone: what goes wrong with one thing costs that thing only."""

import asyncio
import errno
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog

from fakes import fake_broker
from memshare.clients import admission, broker, ksm
from memshare.clients.admission import Announcement, reconcile
from memshare.clients.holds import Hold, Verb, hold, release
from memshare.clients.monitor import Monitor
from memshare.clients.sources import Found, Source
from memshare.config import Config
from memshare.daemon import hook, journal, loop
from memshare.daemon.admission import Admission
from memshare.daemon.inventory import Inventory
from memshare.daemon.loop import Loop
from memshare.daemon.socket import CLIENTS_MAX, Answerer, serving
from memshare.daemon.state import FILE, State, load, save
from memshare.daemon.watcher import Watcher
from memshare.errors import MemshareError, UnreachableError
from memshare.model import Domain, KsmStats
from memshare.policy import Host, RunHook
from memshare.policy import State as PolicyState
from memshare.policy.guard import Guard
from samples import stats

DEADLINE_SECONDS = 60.0


class FakeMonitor(Monitor):
    """Answers as an engine does, but for commands that raise what a test has given."""

    def __init__(self) -> None:
        super().__init__("a")
        self.wrong: dict[str, Exception] = {}
        self.answers: dict[str, object] = {"query-balloon": {"actual": 1 << 30}}
        self.done: list[tuple[str, object]] = []
        self.figures: dict[str, object] = {}

    async def execute(self, command: str, **arguments: object) -> Any:
        name = str(arguments.get("property", command))
        if name in self.wrong:
            raise self.wrong[name]
        if command in ("qom-set", "balloon"):
            self.done.append((name, arguments["value"]))
        return {
            "qom-list": [{"name": "memshare0"}],
            "qom-get": stats(**self.figures),
            **self.answers,
        }.get(command)

    def found(self, name: str = "a", process: str = "1") -> Found:
        @asynccontextmanager
        async def lend() -> AsyncIterator[Monitor]:
            yield self

        return Found(domain=Domain(name=name, source="s"), process=process, monitor=lend)


@asynccontextmanager
async def at_work(watcher: Watcher) -> AsyncIterator[None]:
    task = asyncio.create_task(watcher.run())
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            yield
    finally:
        task.cancel()


async def test_what_a_guest_refuses_is_not_said_again_and_keeps_nothing_else_waiting() -> None:
    monitor = FakeMonitor()
    watcher = Watcher(monitor.found(), lambda: None)
    monitor.wrong["mode"] = MemshareError("a: mode: no")
    async with at_work(watcher):
        watcher.tell("mode", "huge")
        watcher.tell("scan-rate", 7)
        await watcher.answered()
        assert watcher.domain.problem == "a: mode: no"
        assert monitor.done == [("scan-rate", 7)]
        assert watcher.stats is not None
        watcher.tell("cpu-limit", 3)
        await watcher.answered()
        assert (watcher.domain.problem, monitor.done[1:]) == ("", [("cpu-limit", 3)])


async def test_a_balloon_that_could_not_be_told_is_told_later() -> None:
    monitor = FakeMonitor()
    watcher = Watcher(monitor.found(), lambda: None)
    monitor.wrong["balloon"] = UnreachableError("a: no answer")
    async with at_work(watcher):
        watcher.inflate(1 << 29)
        await watcher.answered()
        assert not watcher.domain.answered
        monitor.wrong.clear()
        watcher.tell("scan-rate", 7)
        await watcher.answered()
        assert monitor.done == [("balloon", 1 << 29), ("scan-rate", 7)]


@pytest.mark.parametrize("told", ["Infinity", "1e999", "1" + "0" * 400, "-1", '"1"', "1.5", "{}"])
async def test_a_balloon_of_which_nonsense_is_told_is_none(told: str) -> None:
    monitor = FakeMonitor()
    monitor.answers["query-balloon"] = {"actual": json.loads(told)}
    watcher = Watcher(monitor.found(), lambda: None)
    watcher.wants_balloon = True
    async with at_work(watcher):
        watcher.ask()
        await watcher.answered()
        assert watcher.stats is not None
        assert watcher.balloon_bytes is None


async def test_nonsense_that_nobody_has_thought_of_costs_that_guest_only() -> None:
    monitor = FakeMonitor()
    watcher = Watcher(monitor.found(), lambda: None)
    monitor.wrong["stats"] = RecursionError("x" * 10_000)
    async with at_work(watcher):
        watcher.ask()
        await watcher.answered()
        assert watcher.domain.problem.startswith("a: talks nonsense: RecursionError: xxx")
        assert len(watcher.domain.problem) < 300
        monitor.wrong.clear()
        watcher.tell("scan-rate", 7)
        await watcher.answered()
        assert (watcher.domain.problem, monitor.done) == ("", [("scan-rate", 7)])


class Fixed(Source):
    """Has the guests that a test has given."""

    def __init__(self, *found: Found) -> None:
        super().__init__("s")
        self.found = list(found)
        self.on_change: Callable[[str], None] = lambda _: None

    async def guests(self) -> list[Found]:
        return self.found

    async def watch(self, on_change: Callable[[str], None]) -> Any:
        self.on_change = on_change
        on_change("")
        await asyncio.Event().wait()


class Away(Fixed):
    """Cannot be asked."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    async def guests(self) -> list[Found]:
        raise UnreachableError(f"{self.name}: is away")


class Looks:
    """A loop at work."""

    def __init__(self, config: Config, *sources: Source, state: State | None = None) -> None:
        self.state = state or State(policy=PolicyState())
        self.inventory = Inventory(sources)
        self.looked = asyncio.Event()
        self.loop = Loop(config, self.inventory, None, None, self.state, self.looked.set)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with asyncio.timeout(DEADLINE_SECONDS), asyncio.TaskGroup() as group:
            tasks = [group.create_task(part.run()) for part in (self.inventory, self.loop)]
            yield
            for task in tasks:
                task.cancel()

    async def look(self, accept: Callable[[], bool] = lambda: True) -> None:
        """Wait for a look after which something holds."""
        while True:
            self.looked.clear()
            self.loop.wake()
            await self.looked.wait()
            if accept():
                return


async def test_a_cgroup_that_goes_is_no_end_of_the_daemon(tmp_path: Path) -> None:
    config = Config(state_dir=str(tmp_path), cgroup=str(tmp_path / "gone.slice"))
    looks = Looks(config, Fixed())
    with structlog.testing.capture_logs() as logs:
        async with looks.running():
            await looks.look(lambda: looks.loop.view is not None)
            await looks.look()
    assert [line["event"] for line in logs] == ["cgroup_lost"]
    assert looks.loop.view is not None
    assert looks.loop.view.snapshot.host.limit_bytes == 0


async def test_a_host_that_cannot_be_looked_at_is_taken_to_be_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = Looks(Config(state_dir=str(tmp_path)), Fixed())
    before = loop.read_host()

    def read_host(_cgroup: object = None) -> Host:
        if looks.loop.view is None:
            return before
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(loop, "read_host", read_host)
    with structlog.testing.capture_logs() as logs:
        async with looks.running():
            await looks.look(lambda: looks.loop.view is not None)
            await looks.look()
            await looks.look()
    assert [line["event"] for line in logs] == ["host_not_read"]
    assert looks.loop.view is not None
    assert looks.loop.view.snapshot.host == before


async def test_a_guest_that_the_daemon_has_drained_goes_back_to_what_it_shared(
    tmp_path: Path,
) -> None:
    monitor = FakeMonitor()
    monitor.figures = {"mode": "zero"}
    hold(tmp_path, None, Hold(verb=Verb.DRAIN))
    looks = Looks(Config(state_dir=str(tmp_path)), Fixed(monitor.found()))
    async with looks.running():
        await looks.look(lambda: ("mode", "off") in monitor.done)
        monitor.figures["mode"] = "off"
        await looks.look()
        release(tmp_path, None)
        await looks.look(lambda: ("mode", "zero") in monitor.done)
        monitor.figures["mode"] = "zero"
        await looks.look()
    assert [value for name, value in monitor.done if name == "mode"] == ["off", "zero"]


async def test_what_the_kernel_merged_of_any_guest_is_at_stake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = {7: KsmStats(merging_pages=20, zero_pages=3, rmap_items=40, profit_bytes=1)}
    monkeypatch.setattr(ksm, "read_stat", figures.get)
    silent = FakeMonitor()
    silent.wrong["stats"] = MemshareError("no plugin")
    guests = [
        msgspec.structs.replace(silent.found("merged"), pid=7),
        msgspec.structs.replace(FakeMonitor().found("ended"), pid=8),
        FakeMonitor().found("elsewhere"),
    ]
    looks = Looks(Config(state_dir=str(tmp_path)), Fixed(*guests))
    async with looks.running():
        await looks.look(lambda: looks.loop.view is not None)
    assert looks.loop.view is not None
    assert looks.loop.view.snapshot.merged_bytes == {"merged": 23 * 4096}
    assert looks.loop.view.decision.stake.largest_domain == "merged"


async def test_what_was_taken_is_forgotten_with_the_guest_and_not_before(tmp_path: Path) -> None:
    taken = PolicyState(guard=Guard(ballooned={"a": 2, "gone": 3}))
    source = Fixed(FakeMonitor().found("a"))
    looks = Looks(Config(state_dir=str(tmp_path)), source, state=State(policy=taken))
    async with looks.running():
        await looks.look(lambda: looks.state.policy.guard.ballooned == {"a": 2})
        await looks.look()
        assert load(tmp_path).policy.guard.ballooned == {"a": 2}
        source.found = [FakeMonitor().found("a", process="2")]
        source.on_change("")
        await looks.look(lambda: looks.state.policy.guard.ballooned == {})
    assert load(tmp_path).policy.guard.ballooned == {}


async def test_a_reload_forgets_nothing_of_guests_whose_source_is_away(tmp_path: Path) -> None:
    config = Config(state_dir=str(tmp_path))
    state = State(policy=PolicyState(guard=Guard(ballooned={"a": 2, "b": 3})))
    here = Fixed(FakeMonitor().found("a"), FakeMonitor().found("b"))
    async with (looks := Looks(config, here, state=state)).running():
        await looks.look(lambda: state.processes.keys() == {"a", "b"})
    for _ in range(2):
        async with (looks := Looks(config, Away("s"), state=state)).running():
            await looks.look()
        assert load(tmp_path).policy.guard.ballooned == {"a": 2, "b": 3}
    here.found.pop()
    async with (looks := Looks(config, here, Away("elsewhere"), state=state)).running():
        await looks.look(lambda: "a" in looks.inventory.watchers)
        await looks.look()
    assert load(tmp_path).policy.guard.ballooned == {"a": 2}, "b has ended"


async def test_a_reload_remembers_what_drained_guests_shared(tmp_path: Path) -> None:
    config, monitor = Config(state_dir=str(tmp_path)), FakeMonitor()
    monitor.figures = {"mode": "zero"}
    hold(tmp_path, None, Hold(verb=Verb.DRAIN))
    async with (looks := Looks(config, Fixed(monitor.found()))).running():
        await looks.look(lambda: ("mode", "off") in monitor.done)
    monitor.figures["mode"] = "off"
    release(tmp_path, None)
    async with (looks := Looks(config, Fixed(monitor.found()), state=looks.state)).running():
        await looks.look(
            lambda: looks.loop.view is not None and bool(looks.loop.view.snapshot.guests)
        )
        await looks.look()
        await looks.inventory.watchers["a"].answered()
    assert [value for name, value in monitor.done if name == "mode"] == ["off", "zero"]


def test_what_cannot_be_saved_is_told_once_and_tried_again(tmp_path: Path) -> None:
    state = State(policy=PolicyState(guard=Guard(ballooned={"a": 1})))
    away = tmp_path / "away"
    with structlog.testing.capture_logs() as logs:
        save(away, state)
        save(away, state)
    assert [line["event"] for line in logs] == ["state_not_saved"]
    away.mkdir()
    save(away, state)
    assert load(away).policy.guard.ballooned == {"a": 1}


@pytest.mark.parametrize("text", [b"{", b'{"a": "b"}', b'{"\xff": 1}'])
def test_a_state_that_cannot_be_read_is_begun_anew(tmp_path: Path, text: bytes) -> None:
    (tmp_path / FILE).write_bytes(text)
    assert load(tmp_path).policy.guard.ballooned == {}


def answerer() -> Answerer:
    return Answerer(Config(), State(policy=PolicyState()), lambda: None)


@pytest.mark.parametrize(
    "line",
    [
        b"[" * 60_000,
        b'{"command":"view","x":' + b"[" * 60_000,
        b'{"command":"fits","ram_bytes":' + b"9" * 400 + b"}",
        b'{"command":"fits","ram_bytes":0}',
        b"\xff",
    ],
)
def test_whatever_a_client_says_it_gets_an_answer(line: bytes) -> None:
    answer = answerer().answer(line)
    assert (answer["ok"], answer["exit_code"]) == (False, 2)


async def test_clients_are_bounded_and_end_with_the_socket(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with asyncio.timeout(DEADLINE_SECONDS):
        async with serving(path, answerer()):
            clients = [await asyncio.open_unix_connection(str(path)) for _ in range(CLIENTS_MAX)]
            for reader, writer in clients:
                writer.write(b"{}\n")
                assert await reader.readline()
            reader, writer = await asyncio.open_unix_connection(str(path))
            assert await reader.read() == b"", "one too many"
            writer.close()
        for reader, writer in clients:
            assert await reader.read() == b""
            writer.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"{}\n",
        b'{"groups": 1}\n',
        b'{"allowed": [{"uuid": []}], "groups": []}\n',
        b'{"ok": false, "exit_code": []}\n',
        b'{"a": "\xff"}\n',
        b"x" * (17 << 20),
    ],
)
async def test_a_broker_that_talks_nonsense_is_one_error_of_ours(
    tmp_path: Path, answer: bytes
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(answer)
        writer.close()

    async with await asyncio.start_unix_server(serve, str(tmp_path / "s")):
        with pytest.raises(MemshareError):
            await reconcile(tmp_path / "s", [])


@pytest.mark.parametrize(
    ("announces", "told"), [(False, {"allow": "web1", "forget": "old"}), (True, {"allow": "web1"})]
)
async def test_a_source_that_is_away_keeps_nobody_else_out(
    monkeypatch: pytest.MonkeyPatch, announces: bool, told: dict[str, str]
) -> None:
    """announces: whether guests of the one that is away may be among those that the broker has."""
    asked: dict[str, str] = {}

    async def ask(_socket: Path, command: str, **words: str) -> dict[str, Any]:
        if command != "status":
            asked[command] = words["uuid"]
        old = {"uuid": "old", "group": "g", "cgroup": "/old"}
        return fake_broker.broker_status() | {"groups": [{"name": "g"}], "allowed": [old]}

    monkeypatch.setattr(admission, "ask", ask)
    monkeypatch.setattr(broker, "ask", ask)
    announcement = Announcement(uuid="web1", group="g", cgroup="/web1")
    here = Fixed(msgspec.structs.replace(FakeMonitor().found(), announcement=announcement))
    away = Away("away")
    here.announces, away.announces = True, announces
    inventory = Inventory([here, away])
    async with asyncio.timeout(DEADLINE_SECONDS), asyncio.TaskGroup() as group:
        task = group.create_task(inventory.run())
        await inventory.ready.wait()
        await Admission(Path("control"), inventory, announces=True)._look()
        task.cancel()
    assert asked == told


async def test_a_hook_that_hangs_ends_with_all_that_it_has_started(tmp_path: Path) -> None:
    pipe, script = tmp_path / "pipe", tmp_path / "hook"
    script.write_text(f"#!/bin/sh\nsleep 1000 > {pipe} &\nwait\n")
    script.chmod(0o755)
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        await hook.run_hook(str(script), RunHook(missing_bytes=1, reason="r"), 1.0)
        os.set_blocking(reader, True)
        assert (
            await asyncio.wait_for(asyncio.to_thread(os.read, reader, 1), DEADLINE_SECONDS) == b""
        )
    finally:
        os.close(reader)


def test_logs_are_one_line_each_and_nothing_but_text(capfd: pytest.CaptureFixture[str]) -> None:
    before = structlog.get_config()
    try:
        journal.set_up(json=False)
        structlog.get_logger().info("guest_found", domain="a\nevent=\x1b[2J")
    finally:
        structlog.configure(**before)
    assert 'domain="a\\nevent=\\x1b[2J"' in capfd.readouterr().err

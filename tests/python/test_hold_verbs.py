# SPDX-License-Identifier: GPL-2.0-or-later
"""pause, drain and resume, without a daemon: whoever was stopped goes back to what it was, and to no more."""

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fakes.fake_qmp import FakeQmp, error, fake_qmp
from memshare.cli import drain, pause, resume
from memshare.cli.hold import Target
from memshare.clients.holds import Verb, read_holds
from memshare.config import Config
from memshare.errors import HostError, MemshareError, NoSuchDomainError, UnreachableError
from samples import stats


class Guest(FakeQmp):
    """A guest whose engine does as it is told, until it is told to refuse."""

    refuses = False

    def __init__(self, name: str, **figures: Any) -> None:
        figures = {"mode": "content", "scan_rate_pages": 100} | figures
        super().__init__(
            name, {"memshare0": {"stats": stats(**figures), "modes": ["off", "zero", "content"]}}
        )

    @property
    def state(self) -> tuple[str, int]:
        told = self.objects["memshare0"]["stats"]
        return told["mode"], told["scan_rate_pages"]

    def answer(self, command: str, arguments: dict[str, Any]) -> dict[str, Any]:
        if command == "qom-set" and self.refuses:
            return error("GenericError", "not now")
        answer = super().answer(command, arguments)
        if command == "qom-set":
            name = {"mode": "mode", "scan-rate": "scan_rate_pages"}[arguments["property"]]
            self.objects["memshare0"]["stats"][name] = arguments["value"]
        return answer


class Host:
    """Guests with a monitor each in one folder."""

    def __init__(self, directory: Path) -> None:
        self.state_dir = directory / "state"
        self.folder = directory / "qmp"
        self.folder.mkdir()
        self.config = Config(
            connect=(), qmp_dirs=(str(self.folder),), state_dir=str(self.state_dir)
        )

    async def start(self, stack: AsyncExitStack, guest: Guest) -> Guest:
        fake = fake_qmp(self.folder / f"{guest.name}.sock", guest.name, {})
        served = await stack.enter_async_context(fake)
        served.answer = guest.answer  # type: ignore[method-assign]
        return guest

    def target(self, *names: str) -> Target:
        return Target(guests=names, everyone=not names, config=self.config)

    async def pause(self, *names: str) -> None:
        await pause._pause(self.target(*names))

    async def drain(self, *names: str) -> None:
        await drain._drain(self.target(*names), force=True, waits=True)

    async def resume(self, *names: str) -> None:
        await resume._resume(self.target(*names))


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


async def test_after_draining_all_each_guest_shares_what_it_did_before(host: Host) -> None:
    async with AsyncExitStack() as stack:
        modes = ["off", "zero", "content"]
        guests = [await host.start(stack, Guest(mode, mode=mode)) for mode in modes]
        await host.drain("zero")
        await host.drain()
        assert [guest.state[0] for guest in guests] == ["off"] * 3
        await host.resume()
        assert [guest.state[0] for guest in guests] == modes


async def test_force_drains_within_a_cgroup_that_is_not_there(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    host.config = msgspec.structs.replace(host.config, cgroup="/absent.slice")
    async with AsyncExitStack() as stack:
        guest = await host.start(stack, Guest("a"))
        with pytest.raises(HostError, match=r"^/absent.slice: "):
            await drain._drain(host.target(), force=False, waits=True)
        assert guest.state[0] == "content"
        await host.drain()
        assert guest.state[0] == "off"
    assert "warning: /absent.slice: " in capsys.readouterr().err


async def test_a_guest_of_which_nothing_is_known_is_not_made_to_share(host: Host) -> None:
    async with AsyncExitStack() as stack:
        await host.drain()
        late = await host.start(stack, Guest("late", mode="off"))
        await host.resume()
        assert late.state[0] == "off"


async def test_pausing_a_drained_guest_leaves_it_drained(host: Host) -> None:
    async with AsyncExitStack() as stack:
        guest = await host.start(stack, Guest("a", mode="zero"))
        await host.drain("a")
        await host.pause("a")
        held = read_holds(host.state_dir).of("a")
        assert held is not None
        assert held.verb is Verb.DRAIN
        await host.resume("a")
        assert guest.state[0] == "zero"
        assert guest.state[1] > 0


@pytest.mark.parametrize("names", [["a"], []])
async def test_who_could_not_be_resumed_stays_held(host: Host, names: list[str]) -> None:
    async with AsyncExitStack() as stack:
        a = await host.start(stack, Guest("a"))
        b = await host.start(stack, Guest("b"))
        await host.drain(*names)
        a.refuses = True
        with pytest.raises(MemshareError, match="not now"):
            await host.resume(*names)
        holds = read_holds(host.state_dir)
        assert (holds.all, list(holds.guests)) == (None, ["a"])
        assert b.state[0] == "content"
        a.refuses = False
        await host.resume("a")
        assert a.state[0] == "content"
        assert read_holds(host.state_dir).of("a") is None


async def test_a_guest_that_ended_can_be_resumed(host: Host) -> None:
    async with AsyncExitStack() as stack:
        await host.start(stack, Guest("a"))
        await host.pause("a")
    await host.resume("a")
    assert read_holds(host.state_dir).of("a") is None
    with pytest.raises(NoSuchDomainError):
        await host.resume("a")


async def test_all_guests_are_held_although_none_can_be_asked(host: Host) -> None:
    host.folder.rmdir()
    with pytest.raises(UnreachableError):
        await host.pause()
    held = read_holds(host.state_dir).of("whoever comes")
    assert held is not None
    assert held.verb is Verb.PAUSE


@pytest.mark.parametrize("names", [["a", "b"], []])
@pytest.mark.parametrize("verb", [Verb.PAUSE, Verb.DRAIN])
async def test_resuming_all_leaves_those_held_whose_place_cannot_be_asked(
    host: Host, tmp_path: Path, verb: Verb, names: list[str]
) -> None:
    first, second, away = host.folder, tmp_path / "second", tmp_path / "away"
    second.mkdir()
    host.config = msgspec.structs.replace(host.config, qmp_dirs=(str(first), str(second)))
    async with AsyncExitStack() as stack:
        a = await host.start(stack, Guest("a"))
        host.folder = second
        b = await host.start(stack, Guest("b"))
        await (host.pause if verb is Verb.PAUSE else host.drain)(*names)
        stopped = b.state
        second.rename(away)
        for _ in range(2):
            with pytest.raises(UnreachableError):
                await host.resume()
            holds = read_holds(host.state_dir)
            held = holds.of("b")
            assert held is not None
            assert (held.verb, holds.of("a")) == (verb, None)
        assert a.state[0] == "content"
        assert a.state[1] > 0
        assert b.state == stopped
        away.rename(second)
        await host.pause()
        holds = read_holds(host.state_dir)
        assert [hold and hold.verb for hold in map(holds.of, "ab")] == [Verb.PAUSE, verb]
        await host.resume()
        assert (b.state[0], b.state[1] > 0) == ("content", True)
        holds = read_holds(host.state_dir)
        assert (holds.all, holds.guests) == (None, {})


async def test_a_mode_that_nobody_knows_keeps_no_other_guest_from_being_drained(host: Host) -> None:
    async with AsyncExitStack() as stack:
        odd = await host.start(stack, Guest("a", mode="huge"))
        other = await host.start(stack, Guest("b"))
        await host.drain()
        assert (odd.state[0], other.state[0]) == ("off", "off")


async def test_a_guest_whose_figures_are_not_understood_is_stopped_all_the_same(host: Host) -> None:
    async with AsyncExitStack() as stack:
        odd = await host.start(stack, Guest("a", ram_bytes="much"))
        await host.pause("a")
        assert odd.state == ("content", 0)
        with pytest.raises(MemshareError, match="ram_bytes"):
            await host.drain("a")
        assert odd.state == ("off", 0)


async def test_a_guest_without_the_plugin_is_no_error(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(fake_qmp(host.folder / "a.sock", "a", {}))
        await host.pause("a")
        await host.drain("a")
    assert capsys.readouterr().err.count("a: runs without memshare") == 2

# SPDX-License-Identifier: GPL-2.0-or-later
"""`memshare daemon` and stock QEMUs with QMP sockets in one folder: guests that only run their firmware."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.lib.broker import Broker
from tests.lib.daemon import Daemon
from tests.lib.documents import parsed
from tests.lib.vm import Vm, plugin_arguments, running, until

pytestmark = pytest.mark.full_hash

#: So fast that whoever waits for the steady state of a guest does not wait long; and never short of memory.
POLICY = {
    "budget-cpu-ratio": 0.2,
    "pass-seconds": 0.5,
    "probe-seconds": 2.0,
    "evidence-seconds": 2.0,
    "plenty-ratio": 0.01,
    "reserve-ratio": 0.01,
}


class Host:
    """A folder of monitors, a broker and a daemon."""

    def __init__(self, directory: Path, broker: Broker) -> None:
        self.monitors = directory / "qmp"
        self.monitors.mkdir()
        self.broker = broker
        self.daemon = Daemon(
            directory,
            connect=[],
            qmp_dirs=[str(self.monitors)],
            broker=str(broker.directory / "control.sock"),
            policy=POLICY,
        )

    @asynccontextmanager
    async def guest(self, name: str, *, plugin: bool = True) -> AsyncIterator[Vm]:
        """Run a guest whose monitor the daemon can reach."""
        monitor = f"unix:{self.monitors / name}.sock,server=on,wait=off"
        options = plugin_arguments(socket=str(self.broker.socket_path())) if plugin else []
        async with running(*options, "-name", name, "-qmp", monitor) as vm:
            yield vm


@pytest.fixture
def host(tmp_path_factory: pytest.TempPathFactory, broker: Broker) -> Iterator[Host]:
    """Nothing runs yet but the broker."""
    # Paths of sockets must be short.
    yield Host(tmp_path_factory.mktemp("d"), broker)


def guest_in(view: dict[str, Any], name: str) -> dict[str, Any]:
    """Return one guest of a view; empty when it is not there."""
    return next((dict(domain) for domain in view["domains"] if domain["name"] == name), {})


def stats_in(view: dict[str, Any], name: str) -> dict[str, Any]:
    """Return one guest's figures in a view; empty when there are none."""
    return guest_in(view, name).get("stats") or {}


async def test_guests_are_found_given_rates_and_forgotten(host: Host) -> None:
    daemon = host.daemon
    async with daemon.running(), host.guest("a") as a, host.guest("c", plugin=False):
        async with host.guest("b") as b:
            for name in "ab":
                await daemon.logged("rate_set", f"domain={name}")
                await daemon.view_when(
                    lambda view, name=name: stats_in(view, name)["shared_pages"] > 0
                )

            async def told_and_in_force() -> tuple[str, str]:
                said = await daemon.logged("rate_set", "domain=a")
                return f" scan_rate={(await a.stats())['scan_rate_pages']} ", said

            await until(told_and_in_force, lambda pair: pair[0] in pair[1])
            view = await daemon.view_when(lambda view: "b" in view["rates"])
            assert view["broker"]["groups"][0]["members"] == 2
            assert guest_in(view, "c")["problem"] == "runs without memshare"
            assert view["step"] == "calm"
            assert (await a.stats())["cpu_limit_percent"] > 0
            said = await daemon.do("explain", "a")
            assert said.startswith("a: ")
            assert "pages/s" in said
            told = parsed("explain", await daemon.do("explain", "a", "-o", "json"))
            assert told["rate"]["pages"] > 0
            code, _, err = await daemon.memshare("explain", "nobody")
            assert (code, "no such guest" in err) == (4, True)
            assert "runs without memshare" in await daemon.do("explain", "c")
            await b.quit()
        await daemon.logged("guest_gone", "domain=b")
        await daemon.view_when(lambda view: not guest_in(view, "b"))
        assert (await daemon.do("fits", "--ram", "64M", "--like", "a")).startswith("safe: ")
        code, out, _ = await daemon.memshare("fits", "--ram", "100T")
        assert (code, out[:9]) == (1, "not safe:")
        _, out, _ = await daemon.memshare("fits", "--ram", "100T", "-o", "json")
        assert parsed("fits", out)["free_bytes"] < 0
        rate = (await a.stats())["scan_rate_pages"]
        assert rate > 0
        assert await daemon.stop() == 0
        assert (await a.stats())["scan_rate_pages"] == rate, "the guest keeps its last rate"
        code, _, err = await daemon.memshare("explain", "a")
        assert (code, "is memshare daemon running?" in err) == (3, True)


async def test_holds_outlive_daemon_and_work_without_it(host: Host) -> None:
    daemon = host.daemon
    async with host.guest("a") as a, host.guest("b") as b:
        async with daemon.running():
            await daemon.view_when(lambda view: stats_in(view, "a").get("shared_pages", 0) > 0)
            await daemon.do("drain", "a")
            stats = await a.stats()
            assert (stats["mode"], stats["shared_pages"]) == ("off", 0)
            await daemon.do("pause", "b")
            assert (await b.stats())["scan_rate_pages"] == 0
            assert "held by the operator (drain)" in await daemon.do("explain", "a")
        async with daemon.running():
            # It has looked, and has left both alone.
            view = await daemon.view_when(lambda view: bool(stats_in(view, "b")))
            assert (await a.stats())["mode"] == "off"
            assert (await b.stats())["scan_rate_pages"] == 0
            assert view["rates"] == {"b": 0}
            await daemon.do("resume", "a")
            await a.stats_when(
                lambda stats: bool(stats["shared_pages"]) and stats["mode"] == "content"
            )
            await daemon.do("pause", "--all")
            code, _, err = await daemon.memshare("resume", "b")
            assert (code, "all guests are held" in err) == (1, True)
            async with host.guest("late") as late:
                await late.stats_when(lambda stats: stats["scan_rate_pages"] == 0)
            await daemon.do("resume", "--all")
            await b.stats_when(lambda stats: stats["scan_rate_pages"] > 0)
        await daemon.do("drain", "--all")
        for vm in (a, b):
            assert (await vm.stats())["shared_pages"] == 0
        await daemon.do("resume", "--all")
        for vm in (a, b):
            await vm.stats_when(
                lambda stats: stats["mode"] == "content" and stats["shared_pages"] > 0
            )
        code, _, err = await daemon.memshare("pause", "nobody")
        assert (code, "no such guest" in err) == (4, True)


async def test_a_guest_that_hangs_or_talks_nonsense_keeps_nobody_waiting(host: Host) -> None:
    daemon = host.daemon

    async def nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\xff\x00 hello, world\n{}\n[]\n")
        await reader.read()
        writer.close()

    server = await asyncio.start_unix_server(nonsense, str(host.monitors / "liar.sock"))
    silent = await asyncio.start_unix_server(
        lambda _reader, _writer: None, str(host.monitors / "mute")
    )
    # In a hurry guests are asked each second.
    daemon.configure(policy={**POLICY, "reserve-ratio": 1.0}, guard={"balloon": False})
    async with server, silent, host.guest("a") as a, host.guest("b"), daemon.running():
        await daemon.logged("rate_set", "domain=a")
        os.kill(a.pid, signal.SIGSTOP)
        try:
            await daemon.logged("guest_not_read", "domain=a")
            # Meanwhile another is found and steered.
            async with host.guest("c") as c:
                await daemon.logged("rate_set", "domain=c")
                view = await daemon.view_when(lambda view: bool(guest_in(view, "c")))
                assert not guest_in(view, "a")["answered"]
                assert guest_in(view, "liar")["problem"]
                c.process.send_signal(signal.SIGKILL)
                await c.ended()
                await daemon.logged("guest_gone", "domain=c")  # its socket is there still
        finally:
            os.kill(a.pid, signal.SIGCONT)
        await daemon.logged("guest_read_again", "domain=a")
        assert stats_in(await daemon.view(), "b")["scan_rate_pages"] > 0


async def test_a_broker_that_restarts_is_found_again(host: Host) -> None:
    daemon = host.daemon
    async with daemon.running(), host.guest("a"):
        await daemon.view_when(lambda view: view["broker"] is not None)
        host.broker.process.send_signal(signal.SIGSTOP)
        try:
            await daemon.logged("broker_problem", "does not answer")
        finally:
            host.broker.process.send_signal(signal.SIGCONT)
        await daemon.logged("broker_well_again")


async def test_one_daemon_a_host_and_reload_takes_only_what_is_right(host: Host) -> None:
    daemon = host.daemon
    async with daemon.running(), host.guest("a") as a:
        await daemon.view_when(lambda view: bool(stats_in(view, "a")))
        code, _, err = await daemon.memshare("daemon")
        assert (code, "another memshare daemon runs here" in err) == (5, True)
        daemon.configure(policy={"budget-cpu-ratio": "much"})
        code, _, err = await daemon.memshare("config", "check")
        assert code == 2
        assert "$.policy.budget-cpu-ratio" in err
        daemon.reload()
        assert "budget-cpu-ratio" in await daemon.logged("reload_refused")
        daemon.configure(policy=POLICY, qmp_dirs=[])
        daemon.reload()
        assert "folder of QMP sockets" in await daemon.logged("reload_refused", "folder")
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            daemon.configure(qmp_dirs=[str(host.monitors)], metrics={"port": port})
            daemon.reload()
            await daemon.logged("reload_refused", f"port {port}")
            await daemon.view_when(lambda view: bool(stats_in(view, "a")))
        daemon.configure(metrics={"port": 0})
        other = host.monitors.with_name("other")
        other.mkdir()
        daemon.configure(qmp_dirs=[str(other)])
        daemon.reload()
        await daemon.logged("daemon_reloaded")
        await daemon.view_when(lambda view: view["domains"] == [])
        rate = (await a.stats())["scan_rate_pages"]
        daemon.configure(
            qmp_dirs=[str(other), str(host.monitors)], policy={**POLICY, "pass-seconds": 0.1}
        )
        daemon.reload()
        await daemon.view_when(lambda view: bool(stats_in(view, "a")))
        assert rate > 0
        assert await daemon.stop(signal.SIGINT) == 0
        assert not daemon.socket.exists()


async def test_the_hook_is_run_when_memory_is_short_and_may_fail(
    host: Host, tmp_path: Path
) -> None:
    hook, told = tmp_path / "hook", tmp_path / "told"
    hook.write_text(
        f'#!/bin/sh\necho "$MEMSHARE_MISSING_BYTES $MEMSHARE_REASON" > {told}\nexit 7\n'
    )
    hook.chmod(0o755)
    # The reserve is all memory: there is never enough.
    daemon = host.daemon
    daemon.configure(
        policy={
            **POLICY,
            "reserve-ratio": 1.0,
            "step-seconds": 0.5,
            "balloon-ratio": 1.0,
            "hook-ratio": 1.0,
        }
    )
    daemon.configure(guard={"hook": str(hook)})
    async with daemon.running(), host.guest("a"):
        await daemon.logged("guard_stepped", "step=hook")
        assert "exit_code=7" in await daemon.logged("hook_ended")
        missing, _, reason = told.read_text().partition(" ")
        assert int(missing) > 0
        assert "have to be found" in reason
        view = await daemon.view_when(
            lambda view: bool(stats_in(view, "a")) and view["urgency"] == 1
        )
        assert view["actions"]["RunHook"] >= 1

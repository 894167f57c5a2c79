# SPDX-License-Identifier: GPL-2.0-or-later
"""`memshare daemon` and guests of a real libvirtd: announced to their groups, steered, and kept over restarts."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.lib.broker import Broker
from tests.lib.daemon import Daemon
from tests.lib.libvirtd import Libvirtd, domain_xml, user_group
from tests.lib.vm import until

from memshare.domain import attachment
from memshare.domain.attachment import Wish
from memshare.domain.plugin import Plugin

pytestmark = pytest.mark.full_hash


class Host:
    """A libvirtd, where its guests' broker is, and a daemon for both."""

    def __init__(self, libvirtd: Libvirtd, directory: Path, runtime: Path) -> None:
        self.libvirtd = libvirtd
        self.runtime = runtime
        self.plugin = Plugin(path=str(libvirtd.plugin), runtime_dir=str(runtime))
        self.daemon = Daemon(
            directory,
            connect=[libvirtd.uri],
            libvirt_run_dir=str(libvirtd.run),
            broker=str(runtime / "control.sock"),
            policy={"plenty-ratio": 0.01, "reserve-ratio": 0.01, "pass-seconds": 1.0},
        )

    def broker(self) -> Broker:
        """Return a broker that admits announced guests only, in no group yet but the default one."""
        mode = ("--socket-mode", "0660", "--socket-group", str(user_group()))
        return Broker("--group", "default", *mode, directory=self.runtime)

    def start(self, name: str, group: str) -> None:
        """Start a guest that is attached."""
        xml = attachment.attach(domain_xml(name), Wish(group=group), self.plugin, "default")
        self.libvirtd.define(xml)
        self.libvirtd.virsh("start", name)

    async def view_when_shared(self, *names: str) -> dict[str, Any]:
        """Wait until these guests share contents."""
        return await self.daemon.view_when(
            lambda view: (
                {
                    domain["name"]
                    for domain in view["domains"]
                    if domain["stats"] and domain["stats"]["shared_pages"]
                }
                >= set(names)
            )
        )


@pytest.fixture
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """Destroys and forgets the guests that the test has made."""
    with Libvirtd() as libvirtd:
        runtime = libvirtd.directory / "run/memshare"
        runtime.mkdir()
        yield Host(libvirtd, tmp_path_factory.mktemp("d"), runtime)
        for name in libvirtd.virsh("list", "--all", "--name").split():
            if name in libvirtd.virsh("list", "--name").split():
                libvirtd.virsh("destroy", name)
            libvirtd.virsh("undefine", name)


def sessions(broker: Broker) -> dict[str, set[int]]:
    """Return the processes in each group."""
    groups = broker.control().do("status")["groups"]
    return {group["name"]: {one["pid"] for one in group["sessions"]} for group in groups}


def allowed(broker: Broker) -> dict[str, str]:
    """Return the groups of announced guests."""
    return {told["uuid"]: told["group"] for told in broker.control().do("status")["allowed"]}


async def test_I5_guests_are_announced_steered_and_kept_over_restarts_of_everything(
    host: Host,
) -> None:
    libvirtd, daemon = host.libvirtd, host.daemon
    with host.broker() as broker:
        async with daemon.running():
            for name, group in (("a1", "tenant-a"), ("a2", "tenant-a"), ("b1", "tenant-b")):
                host.start(name, group)
            await host.view_when_shared("a1", "a2")
            await daemon.view_when(
                lambda view: any(
                    domain["name"] == "b1" and domain["stats"] and domain["stats"]["passes"] > 2
                    for domain in view["domains"]
                )
            )
            pids = {name: libvirtd.pid_of(name) for name in ("a1", "a2", "b1")}
            seen = sessions(broker)
            assert seen["tenant-a"] == {pids["a1"], pids["a2"]}
            assert seen["tenant-b"] == {pids["b1"]}

            # What the owner changes is in force within a look.
            libvirtd.virsh(
                *("metadata", "a1", "urn:memshare:domain:1", "--key", "memshare", "--live"),
                *("--set", '<sharing group="tenant-a" min-rate="777" max-rate="777"/>'),
            )
            await daemon.view_when(
                lambda view: any(
                    domain["name"] == "a1" and domain["stats"]["scan_rate_pages"] == 777
                    for domain in view["domains"]
                )
            )
            assert "777 pages/s" in await daemon.do("explain", "a1")

            libvirtd.stop()
            await daemon.logged("source_lost")
            view = await daemon.view()
            assert {domain["name"] for domain in view["domains"]} == set(pids)
            assert len(allowed(broker)) == 3
            libvirtd.start()
            await daemon.logged("source_found_again")

            libvirtd.virsh("destroy", "b1")
            await daemon.logged("guest_gone", "domain=b1")

            async def groups() -> set[str]:
                return set(allowed(broker).values())

            await until(groups, lambda groups: groups == {"tenant-a"})
            assert await daemon.stop(signal.SIGKILL) != 0
        assert len(allowed(broker)) == 2, "whoever was admitted stays so without the daemon"
    with host.broker() as broker:
        # A broker that knows nobody, and a daemon that has just been started.
        async with daemon.running():

            async def members() -> set[int]:
                return sessions(broker).get("tenant-a", set())

            await until(members, lambda members: members == {pids["a1"], pids["a2"]})
            await host.view_when_shared("a1", "a2")


async def test_malformed_metadata_costs_that_guest_only(host: Host) -> None:
    libvirtd, daemon = host.libvirtd, host.daemon
    with host.broker():
        async with daemon.running():
            for name in ("good", "bad"):
                host.start(name, "tenant-a")
            await host.view_when_shared("good", "bad")
            libvirtd.virsh(
                *("metadata", "bad", "urn:memshare:domain:1", "--key", "memshare", "--live"),
                *("--set", '<sharing grupo="tenant-b"/>'),
            )
            view = await daemon.view_when(
                lambda view: any("grupo" in domain["problem"] for domain in view["domains"])
            )
            good = next(domain for domain in view["domains"] if domain["name"] == "good")
            assert (good["problem"], good["stats"]["state"]) == ("", "running")
            rates = await daemon.view_when(lambda view: "good" in view["rates"])
            assert rates["rates"]["good"] > 0

# SPDX-License-Identifier: GPL-2.0-or-later
"""A libvirt that misbehaves: what it does to one call costs that call only.

tests/integration/test_libvirt.py has a real one.
"""

import asyncio
import threading
from typing import Any

import libvirt
import pytest

from memshare.clients.libvirt import Hypervisor, LibvirtMonitor, Running
from memshare.errors import MemshareError, UnreachableError


def running(name: str) -> Running:
    return Running(uuid=name, name=name, id=1, persistent=True, xml="<domain/>")


class Answering:
    """Brings commands to a QEMU that always says the same."""

    def __init__(self, said: str) -> None:
        self.said = said

    async def monitor_command(self, *_: Any) -> str:
        return self.said


@pytest.mark.parametrize("said", ['{"return": ' + "[" * 100_000 + "]" * 100_000 + "}", "[]", "{"])
async def test_a_monitor_that_talks_nonsense_is_one_error_of_ours(said: str) -> None:
    monitor = LibvirtMonitor(Answering(said), running("a"))  # type: ignore[arg-type]
    with pytest.raises(MemshareError, match="a: qom-get: no JSON object came back"):
        await monitor.stats()


class Listing:
    """A connection to a libvirt that has web1, web2 and web3; of web2 it tells an error."""

    def __init__(self, code: int, domain: int) -> None:
        self.error = libvirt.libvirtError("no")
        self.error.err = (code, domain, "no", 2, None, None, None, -1, -1)

    def listAllDomains(self, _flags: int) -> list[Any]:
        return [self.guest(name) for name in ("web1", "web2", "web3")]

    def guest(self, name: str) -> Any:
        listing = self

        class Guest:
            def UUIDString(self) -> str:
                return name

            def name(self) -> str:
                return name

            def ID(self) -> int:
                return 1

            def isPersistent(self) -> int:
                if name == "web2":
                    raise listing.error
                return 1

            def XMLDesc(self, _flags: int) -> str:
                return "<domain/>"

        return Guest()

    def isAlive(self) -> int:
        return 0

    def setKeepAlive(self, _seconds: int, _count: int) -> int:
        return 0


async def test_a_guest_that_ends_during_a_listing_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended = Listing(libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_FROM_QEMU)
    monkeypatch.setattr(libvirt, "open", lambda _uri: ended)
    assert [guest.name for guest in await Hypervisor("x:///").running()] == ["web1", "web3"]


async def test_a_connection_that_is_lost_during_a_listing_is_no_end_of_guests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lost = Listing(libvirt.VIR_ERR_INTERNAL_ERROR, libvirt.VIR_FROM_RPC)
    monkeypatch.setattr(libvirt, "open", lambda _uri: lost)
    with pytest.raises(UnreachableError):
        await Hypervisor("x:///").running()


async def test_while_a_connection_hangs_no_other_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, answers, listed = [], threading.Event(), threading.Event()
    well = Listing(libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_FROM_QEMU)

    def hang(uri: str) -> Listing:
        asked.append(uri)
        answers.wait()
        return well

    def all_domains(_flags: int) -> list[Any]:
        listed.set()
        return []

    monkeypatch.setattr(libvirt, "open", hang)
    monkeypatch.setattr(well, "listAllDomains", all_domains)
    hypervisor = Hypervisor("x:///")
    try:
        with monkeypatch.context() as patience:
            patience.setattr(Hypervisor._call, "__defaults__", (0.05,))
            while not hypervisor._hanging:
                with pytest.raises(UnreachableError, match="does not answer"):
                    await hypervisor.running()
        before = len(asked)
        for _ in range(3):
            with pytest.raises(UnreachableError, match="does not answer"):
                await hypervisor.running()
        assert len(asked) == before
    finally:
        answers.set()
    assert await asyncio.to_thread(listed.wait, 60)
    assert await hypervisor.running() == []

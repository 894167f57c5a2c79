# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's rule for whoever replaces RAM, and for whoever needs it to stay in place: not both.

A second plugin stands for the device that pins RAM, as VFIO does.
"""

from pathlib import Path

import pytest
from qemu.qmp import ExecuteError
from tests.lib.broker import Broker, build_directory
from tests.lib.vm import Stats, Vm, plugin_arguments, running, until

PINNER = str(build_directory() / "tests" / "integration" / "libdiscards.so")


def joined(broker: Broker, **options: str | int) -> list[str]:
    """Return -plugin for a guest in that broker's group and for the device that pins RAM."""
    shares = plugin_arguments(socket=str(broker.socket_path()), scan_rate=200_000, **options)
    return [*shares, "-plugin", PINNER]


async def disable(vm: Vm, *, disable: bool) -> None:
    """Let the device start, or end."""
    await vm.execute("qom-set", path="/objects", property="discards-disabled", value=int(disable))


def shares(stats: Stats) -> bool:
    """Whether contents are shared."""
    return bool(stats["shared_pages"])


def has_no_slots(stats: Stats) -> bool:
    """Whether nothing is mapped from the store."""
    return stats["shared_pages"] + stats["broken_pages"] == 0


async def may_disable(vm: Vm) -> bool:
    """Try to start the device."""
    try:
        await disable(vm, disable=True)
    except ExecuteError as error:
        assert "Device or resource busy" in str(error)
        return False
    return True


@pytest.mark.parametrize("direct", ["off", "on"])
async def test_a_device_that_pins_ram_waits_until_nothing_is_shared(
    broker: Broker, tmp_path: Path, direct: str
) -> None:
    image = tmp_path / "disk"
    image.write_bytes(bytes(1 << 20))
    disk = f"driver=file,node-name=disk,filename={image},cache.direct={direct}"
    async with running(*joined(broker), "-blockdev", disk) as a, running(*joined(broker)) as b:
        await a.stats_when(shares)
        await b.stats_when(shares)
        assert not await may_disable(a)
        await a.set("mode", "off")
        await until(lambda: may_disable(a), bool)
        assert has_no_slots(await a.stats())

        # From now on the device is there, whatever the operator asks for.
        merged = (await a.stats())["merged_pages"]
        await a.set("mode", "content")
        stats = await a.stats()
        assert (stats["state"], stats["mode"]) == ("refused", "off")
        assert "a device needs RAM to stay in place" in stats["refusal"]
        passes = (await b.stats())["passes"]
        await b.stats_when(lambda stats: bool(stats["passes"] > passes + 2))
        assert (await a.stats())["merged_pages"] == merged

        await disable(a, disable=False)
        await a.stats_when(shares)
        assert not await may_disable(a)


async def test_a_device_that_was_there_first_keeps_the_guest_from_sharing(broker: Broker) -> None:
    async with running(*joined(broker, mode="off")) as a, running(*joined(broker)) as b:
        assert await may_disable(a)
        await a.set("mode", "zero")
        stats = await a.stats_when(lambda stats: bool(stats["refusal"]))
        assert (stats["state"], stats["mode"], stats["ram_bytes"]) == ("refused", "off", 0)
        await disable(a, disable=False)
        await a.stats_when(lambda stats: bool(stats["zero_pages"]))
        # Zero pages given back are absent: that takes RAM out of its place as well.
        assert not await may_disable(a)
        await b.stats_when(lambda stats: bool(stats["passes"]))


@pytest.mark.parametrize("direct", ["off", "on"])
async def test_I1_nothing_is_discarded_between_the_coming_of_a_balloon_that_reports_and_plain_memory(
    broker: Broker, tmp_path: Path, direct: str
) -> None:
    """A page that was shared would read as its slot, and the guest expects zeros."""
    image = tmp_path / "disk"
    image.write_bytes(bytes(1 << 20))
    disk = f"driver=file,node-name=disk,filename={image},cache.direct={direct}"

    async with running(*joined(broker), "-blockdev", disk) as a, running(*joined(broker)) as b:

        async def are_disabled() -> bool:
            return bool(
                await a.execute("qom-get", path="/objects", property="discards-are-disabled")
            )

        await a.stats_when(shares)
        await b.stats_when(shares)
        assert not await are_disabled()
        await a.execute(
            "device_add", driver="virtio-balloon-pci", id="balloon", free_page_reporting=True
        )
        assert await are_disabled()  # before the guest can have found it
        await until(are_disabled, lambda are: not are)
        stats = await a.stats()
        assert has_no_slots(stats)
        assert (stats["mode"], stats["state"]) == ("zero", "running")
        assert "free page reporting" in stats["refusal"]
        assert not await may_disable(a)


async def test_no_window_is_opened_until_a_new_device_was_looked_at(broker: Broker) -> None:
    async with running(*joined(broker)) as a, running(*joined(broker)) as b:
        await a.stats_when(shares)
        await b.stats_when(shares)
        await a.execute("device_add", driver="virtio-rng-pci", id="device")
        assert (await a.stats())["state"] == "paused"
        await a.stats_when(lambda stats: stats["state"] == "running")

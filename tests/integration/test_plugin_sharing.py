# SPDX-License-Identifier: GPL-2.0-or-later
"""Two guests that only run the same firmware, and a real broker."""

from pathlib import Path

from tests.lib.broker import Broker
from tests.lib.vm import Stats, plugin_arguments, running

SANDBOX = ("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")


def joined(broker: Broker) -> list[str]:
    """Return -plugin for a guest in that broker's group, scanning fast."""
    return plugin_arguments(socket=str(broker.socket_path()), scan_rate=200_000)


def shares(stats: Stats) -> bool:
    """Whether contents and zero pages are shared."""
    return bool(stats["shared_pages"] and stats["zero_pages"])


def is_off(stats: Stats) -> bool:
    """Whether nothing is shared and nothing will be."""
    return bool(stats["state"] == "off" and stats["shared_pages"] == 0)


async def test_guests_share_and_stop_and_share_again(broker: Broker) -> None:
    options = joined(broker)
    async with running(*options, *SANDBOX, "-name", "a") as a, running(*options) as b:
        stats = await a.stats_when(shares)
        assert (stats["state"], stats["refusal"], stats["protocol"]) == ("running", "", "1")
        await b.stats_when(shares)

        await a.set("mode", "off")
        # No descriptor of this guest could pin memory, so nothing stays in store mappings either.
        await a.stats_when(lambda stats: is_off(stats) and stats["broken_pages"] == 0)
        await a.set("mode", "content")
        await a.stats_when(shares)

        assert await a.quit() == 0
        assert await b.terminate() == 0


async def test_a_guest_with_direct_io_copies_nothing_until_it_is_drained(
    broker: Broker, tmp_path: Path
) -> None:
    image = tmp_path / "disk"
    image.write_bytes(bytes(1 << 20))
    options = joined(broker)
    async with running(*options) as a, running(*options) as b:
        await a.stats_when(shares)
        await b.stats_when(shares)
        await a.execute(
            "blockdev-add",
            driver="file",
            node_name="disk",
            filename=str(image),
            cache={"direct": True},
        )
        rebuilt = (await a.stats())["rebuilt_pages"]
        await a.execute("system_reset")  # the firmware writes to its memory again
        passes = (await a.stats_when(lambda stats: bool(stats["broken_pages"])))["passes"]
        stats = await a.stats_when(lambda stats: bool(stats["passes"] > passes + 5))
        assert stats["broken_pages"] > 0
        assert stats["rebuilt_pages"] == rebuilt

        await a.set("mode", "off")
        stats = await a.stats_when(lambda stats: is_off(stats) and stats["broken_pages"] == 0)
        assert stats["rebuilt_pages"] > rebuilt
        await a.set("mode", "content")
        await a.stats_when(shares)


async def test_a_guest_that_is_refused_while_sharing_becomes_private(broker: Broker) -> None:
    options = joined(broker)
    async with running(*options) as a, running(*options) as b:
        await a.stats_when(shares)
        await b.stats_when(shares)
        await a.execute(
            "device_add", driver="virtio-balloon-pci", id="balloon", free_page_reporting=True
        )
        stats = await a.stats_when(lambda stats: bool(stats["mode"] == "zero"))
        stats = await a.stats_when(lambda stats: bool(stats["shared_pages"] == 0))
        assert "free page reporting" in stats["refusal"]

# SPDX-License-Identifier: GPL-2.0-or-later
"""The QOM object, through a stock monitor."""

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from qemu.qmp import ExecuteError
from tests.lib.vm import plugin_arguments, running

ROOT = Path(__file__).resolve().parents[2]
SANDBOX = ("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
TEXTS = {"version", "protocol", "state", "refusal", "group", "mode"}


def documented_names() -> list[str]:
    """Name the fields of MshStats."""
    header = (ROOT / "qemu-plugin" / "include" / "memshare" / "stats.h").read_text()
    body = re.search(r"typedef struct MshStats \{(.*?)\} MshStats;", header, re.DOTALL)
    assert body is not None
    return re.findall(r"^    \w+ (\w+)(?:\[\w+\])?;", body.group(1), re.MULTILINE)


@pytest.mark.parametrize("arguments", [(), SANDBOX], ids=["plain", "sandbox"])
async def test_stats_are_typed_and_named_as_documented(arguments: Sequence[str]) -> None:
    async with running(*plugin_arguments(socket="/nowhere"), *arguments) as vm:
        stats = await vm.stats()
        assert sorted(stats) == sorted(documented_names())
        for name, value in stats.items():
            if name in TEXTS:
                assert isinstance(value, str), name
            elif name == "window_time_ns":
                assert len(value) == 24
                assert all(isinstance(count, int) for count in value)
            else:
                assert isinstance(value, int), name
        assert stats["version"] == "0.1.0"


async def test_properties_are_set_and_read_back() -> None:
    async with running(*plugin_arguments(socket="/nowhere")) as vm:
        for name, value in (("mode", "zero"), ("scan-rate", 0), ("cpu-limit", 100)):
            await vm.set(name, value)
            assert await vm.get(name) == value
        stats = await vm.stats()
        assert (stats["mode"], stats["scan_rate_pages"], stats["cpu_limit_percent"]) == (
            "zero",
            0,
            100,
        )
        await vm.set("scan-rate", -1)
        assert await vm.get("scan-rate") == 2**64 - 1
        await vm.set("mode", "off")
        assert (await vm.stats_when(lambda stats: stats["state"] == "off"))["mode"] == "off"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("mode", "everything", "mode: 'everything' is none of off, zero, content"),
        ("mode", 1, "Invalid parameter type for 'mode', expected: string"),
        ("scan-rate", -5, "scan-rate: -5 is not a number of pages per second"),
        ("scan-rate", "7k", "Parameter 'scan-rate' expects uint64"),
        ("cpu-limit", 101, "cpu-limit: 101 is not a percentage of one core (0 to 100)"),
    ],
)
async def test_a_bad_value_is_one_clear_error(name: str, value: object, message: str) -> None:
    async with running(*plugin_arguments(socket="/nowhere")) as vm:
        before = await vm.get(name)
        with pytest.raises(ExecuteError, match=re.escape(message)):
            await vm.set(name, value)
        assert await vm.get(name) == before


async def test_the_object_cannot_be_deleted() -> None:
    async with running(*plugin_arguments(socket="/nowhere")) as vm:
        # 7.2 and 10.0, then 11.1.
        with pytest.raises(ExecuteError, match=r"in use|is not supported"):
            await vm.execute("object-del", id="memshare0")
        assert (await vm.stats())["version"] == "0.1.0"


async def test_the_vm_ends_by_quit_and_by_sigterm() -> None:
    async with running(*plugin_arguments(socket="/nowhere")) as vm:
        assert await vm.quit() == 0
    async with running(*plugin_arguments(socket="/nowhere")) as vm:
        assert await vm.terminate() == 0

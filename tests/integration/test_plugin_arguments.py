# SPDX-License-Identifier: GPL-2.0-or-later
"""What -plugin accepts, what it refuses, and what it only tells."""

import subprocess
from pathlib import Path

import pytest
from tests.lib.vm import plugin_arguments, plugin_path, run_refused, running


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "all"}, "mode=all is none of off, zero, content"),
        ({"eager": "yes"}, "eager=yes is none of on, off"),
        ({"scan_rate": "fast"}, "scan-rate=fast is not a number from 0 to 18446744073709551615"),
        ({"scan_rate": "-1"}, "scan-rate=-1 is not a number from 0 to 18446744073709551615"),
        ({"cpu_limit": 101}, "cpu-limit=101 is not a number from 0 to 100"),
        ({"socket": ""}, "socket= is empty"),
        ({"socket": "/" + 300 * "x"}, "socket= is longer than 255 characters"),
        ({"group": 64 * "x"}, "group= is longer than 63 characters"),
        ({"sockt": "/x"}, "unknown argument 'sockt'"),
    ],
)
async def test_a_wrong_argument_stops_qemu_with_one_line(
    options: dict[str, str | int], message: str
) -> None:
    status, stderr = await run_refused(*plugin_arguments(**options))
    assert status != 0
    ours = [line for line in stderr.splitlines() if line.startswith("memshare: ")]
    assert len(ours) == 1
    assert ours[0].removeprefix("memshare: ").startswith(message)


@pytest.mark.parametrize("group", [".hidden", "Upper", "a b", "../etc"])
async def test_a_bad_group_name_stops_qemu_with_one_line(group: str) -> None:
    status, stderr = await run_refused(*plugin_arguments(socket="/nowhere", group=group))
    assert status != 0
    ours = [line for line in stderr.splitlines() if line.startswith("memshare: ")]
    assert len(ours) == 1
    assert "group" in ours[0]
    assert group in ours[0]


async def test_the_plugin_given_twice_stops_qemu(tmp_path: Path) -> None:
    # Under one name QEMU itself makes one of the two.
    other_name = tmp_path / "other.so"
    other_name.symlink_to(plugin_path())
    once = plugin_arguments(socket="/nowhere")
    status, stderr = await run_refused(*once, "-plugin", f"{other_name},socket=/nowhere")
    assert status != 0
    assert "memshare: the plugin is given twice" in stderr


async def test_an_unreachable_socket_lets_the_vm_run() -> None:
    async with running(*plugin_arguments(socket="/nowhere/group.sock", group="a.b-c_1")) as vm:
        stats = await vm.stats_when(lambda stats: bool(stats["refusal"]))
        assert stats["state"] == "waiting-for-broker"
        assert "/nowhere/group.sock" in stats["refusal"]
        assert stats["mode"] == "content"
        assert stats["group"] == "a.b-c_1"
        assert stats["ram_bytes"] == 64 << 20
        assert (await vm.execute("query-status"))["running"]
        assert await vm.quit() == 0


async def test_arguments_are_in_force() -> None:
    options = plugin_arguments(socket="/nowhere", mode="zero", scan_rate=123, cpu_limit=45)
    async with running(*options) as vm:
        stats = await vm.stats()
        assert (stats["mode"], stats["scan_rate_pages"], stats["cpu_limit_percent"]) == (
            "zero",
            123,
            45,
        )
        assert [await vm.get(name) for name in ("mode", "scan-rate", "cpu-limit")] == [
            "zero",
            123,
            45,
        ]


def test_two_symbols_are_exported() -> None:
    listed = subprocess.run(
        ["nm", "-D", "--defined-only", str(plugin_path())],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert sorted(line.split()[-1] for line in listed.splitlines()) == [
        "qemu_plugin_install",
        "qemu_plugin_version",
    ]

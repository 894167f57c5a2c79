# SPDX-License-Identifier: GPL-2.0-or-later
"""`memshare status` against fake monitors and a fake broker; monitors themselves."""

import asyncio
import csv
import io
import os
import socket
import sys
import time
from pathlib import Path

import pytest
from tests.lib.documents import parsed

from fakes.fake_broker import broker_status, fake_broker
from fakes.fake_qmp import fake_qmp
from memshare.clients.monitor import NotSharingError
from memshare.clients.qmp import open_monitor
from memshare.errors import MemshareError, UnreachableError
from samples import group, stats

SHARING = {"memshare0": {"stats": stats(ram_bytes=1 << 28, shared_pages=5), "modes": ["off"]}}


async def memshare(*arguments: str, **environment: str) -> tuple[int | None, str, str]:
    """Run the real command in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from memshare.cli import main; main()", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "NO_COLOR": "1", **environment},
    )
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


def stale_socket(path: Path) -> None:
    """Leave behind what a killed QEMU leaves behind."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))


async def test_json_has_the_host_its_guests_and_no_broker(tmp_path: Path) -> None:
    stale_socket(tmp_path / "dead.qmp")
    (tmp_path / "notes.txt").write_text("not a socket")
    where = ("--qmp-dir", str(tmp_path), "--broker", str(tmp_path / "none"))
    async with (
        fake_qmp(tmp_path / "a.qmp", "web1", SHARING),
        fake_qmp(tmp_path / "b.qmp", "", {}),
    ):
        code, out, err = await memshare("status", *where, "-o", "json")
        _, listed, _ = await memshare("list", *where[:2], "-o", "json")
    assert (code, err) == (0, "")
    answer = parsed("status", out)
    assert answer["schema"] == 1
    assert answer["domains"] == parsed("list", listed)["domains"]
    assert answer["guests"] == {
        "count": 3,
        "states": {"running": 1, "not-sharing": 1, "unreachable": 1},
        "asked": "guests",
    }
    assert answer["broker"]["version"] is None
    assert "no such file" in answer["broker"]["problem"]
    assert answer["host"]["total_bytes"] > answer["host"]["available_bytes"] > 0
    assert answer["totals"]["ram_bytes"] == 1 << 28
    assert [(g["name"], g["guests"], g["store_bytes"]) for g in answer["groups"]] == [
        ("demo", 1, None)
    ]


async def test_table_has_a_line_for_each_subject(tmp_path: Path) -> None:
    saving = {"memshare0": {"stats": stats(saved_zero_bytes=3 << 20, overhead_bytes=1 << 20)}}
    async with (
        fake_qmp(tmp_path / "a.qmp", "web1", saving),
        fake_broker(
            tmp_path / "control.sock",
            {"status": broker_status(group(store_bytes=5 << 20, slots_dead=256))},
        ) as socket,
    ):
        (tmp_path / "guests").mkdir()
        (tmp_path / "guests/a.qmp").symlink_to(tmp_path / "a.qmp")
        where = ("--qmp-dir", str(tmp_path / "guests"), "--broker", str(socket))
        code, out, err = await memshare("status", *where)
        _, row, _ = await memshare("status", *where, "-o", "csv")
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()] == [
        *("memory", "broker", "guests", "saved", "group")
    ]
    assert f"memshared 9, pid 7, {socket}" in out
    assert "guests   1: 1 running" in out
    assert "2.0 MiB of 0 B: 3.0 MiB zero, 0 B content, less 1.0 MiB of cost" in out
    assert "demo: 1 guest, saves 2.0 MiB; store 5.0 MiB, 1.0 MiB of it dead" in out
    (record,) = csv.DictReader(io.StringIO(row))
    assert (record["saved_bytes"], record["guests"], record["broker_version"]) == (
        *(str(2 << 20), "1", "9"),
    )


async def test_no_guest_answers_is_exit_code_3(tmp_path: Path) -> None:
    stale_socket(tmp_path / "dead.qmp")
    code, out, err = await memshare("status", "--qmp-dir", str(tmp_path))
    assert code == 3
    assert "1 unreachable" in out
    assert err.splitlines()[0] == f"error: {tmp_path}: no guest answers"


async def test_no_folder_is_exit_code_3(tmp_path: Path) -> None:
    code, out, err = await memshare("status", "--qmp-dir", str(tmp_path / "none"))
    assert (code, out) == (3, "")
    assert err.splitlines()[0] == f"error: {tmp_path}/none: no such file or directory"
    assert err.splitlines()[1].startswith("hint: ")


async def test_no_guests_is_no_error(tmp_path: Path) -> None:
    code, out, _ = await memshare("status", "--qmp-dir", str(tmp_path), "-o", "json")
    assert (code, parsed("status", out)["domains"]) == (0, [])


async def test_guests_are_looked_for_where_the_daemon_looks(tmp_path: Path) -> None:
    config = tmp_path / "memshare.toml"
    config.write_text(f'connect = []\nqmp-dirs = ["{tmp_path}"]\n')
    async with fake_qmp(tmp_path / "a.qmp", "web1", SHARING):
        _, out, err = await memshare("list", "-o", "json", MEMSHARE_CONFIG=str(config))
        assert [guest["domain"] for guest in parsed("list", out)["domains"]] == ["web1"]
        assert err == ""

        config.write_text("qmp-dir = []\n")
        where = ("--qmp-dir", str(tmp_path))
        code, _, err = await memshare("list", *where, MEMSHARE_CONFIG=str(config))
        assert (code, err) == (0, "")  # told where: the configuration does not matter
        _, _, err = await memshare("list", MEMSHARE_CONFIG=str(config))
        assert err.startswith(f"warning: {config}: ")


@pytest.mark.parametrize(
    ("answer", "asked"),
    [
        ({"taken_seconds": 0.0}, "daemon"),
        ({"taken_seconds": -60.0}, "guests"),
        ({"domains": [{"uuid": 7}]}, "guests"),
        ({"domains": None}, "guests"),
    ],
)
async def test_a_daemon_that_knows_spares_the_guests(
    tmp_path: Path, answer: dict[str, object], asked: str
) -> None:
    """A stale view, and one that is not understood, are none."""
    config, guests = tmp_path / "memshare.toml", tmp_path / "guests"
    guests.mkdir()
    config.write_text(f'connect = []\nqmp-dirs = ["{guests}"]\nsocket = "{tmp_path}/daemon.sock"\n')
    view = {"taken_seconds": 0.0, "domains": [{"name": "seen", "stats": stats(ram_bytes=5)}]}
    view |= answer
    view["taken_seconds"] = time.time() + view["taken_seconds"]
    where = {"MEMSHARE_CONFIG": str(config)}
    async with (
        fake_qmp(guests / "a.qmp", "web1", SHARING),
        fake_broker(tmp_path / "daemon.sock", {"view": {"view": view}}),
    ):
        _, out, err = await memshare("status", "-o", "json", **where)
        assert err == ""
        told = parsed("status", out)
        assert told["guests"]["asked"] == asked
        name = "seen" if asked == "daemon" else "web1"
        assert [guest["domain"] for guest in told["domains"]] == [name]
        _, out, _ = await memshare("status", "-o", "json", "--qmp-dir", str(guests), **where)
        assert parsed("status", out)["guests"]["asked"] == "guests"


async def test_wrong_format_is_exit_code_2() -> None:
    code, _, err = await memshare("status", "-o", "yaml")
    assert code == 2
    assert err.startswith("error: invalid value")


async def test_monitor_sets_and_reports_qemus_words(tmp_path: Path) -> None:
    async with fake_qmp(tmp_path / "a.qmp", "web1", SHARING) as fake:
        async with open_monitor(tmp_path / "a.qmp") as monitor:
            await monitor.set("mode", "off")
            await monitor.set("scan-rate", 7)
            with pytest.raises(MemshareError, match="mode: one of off, zero, content"):
                await monitor.set("mode", "nonsense")
        assert fake.sets == [("mode", "off"), ("scan-rate", 7)]


async def test_monitor_of_a_guest_without_the_plugin(tmp_path: Path) -> None:
    async with (
        fake_qmp(tmp_path / "a.qmp", "web1", {}),
        open_monitor(tmp_path / "a.qmp") as monitor,
    ):
        with pytest.raises(NotSharingError):
            await monitor.stats()


async def test_monitor_refuses_figures_it_does_not_understand(tmp_path: Path) -> None:
    objects = {"memshare0": {"stats": stats(ram_bytes="many")}}
    async with (
        fake_qmp(tmp_path / "a.qmp", "web1", objects),
        open_monitor(tmp_path / "a.qmp") as monitor,
    ):
        with pytest.raises(MemshareError, match="ram_bytes"):
            await monitor.stats()


async def test_silent_monitor_is_given_up(tmp_path: Path) -> None:
    """QEMU greets one client at a time; a second one hears nothing."""
    held = asyncio.Event()

    async def say_nothing(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await held.wait()
        writer.close()

    server = await asyncio.start_unix_server(say_nothing, str(tmp_path / "a.qmp"))
    async with server:
        with pytest.raises(UnreachableError, match="no answer"):
            async with open_monitor(tmp_path / "a.qmp", timeout_seconds=0.2):
                pass
        held.set()

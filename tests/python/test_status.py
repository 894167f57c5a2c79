# SPDX-License-Identifier: GPL-2.0-or-later
"""`memshare status` against fake monitors."""

import asyncio
import csv
import io
import json
import os
import socket
import sys
from pathlib import Path

import pytest

from fakes.fake_qmp import fake_qmp
from memshare.clients.monitor import NotSharingError
from memshare.clients.qmp import open_monitor
from memshare.errors import MemshareError, UnreachableError
from samples import stats

SHARING = {"memshare0": {"stats": stats(ram_bytes=1 << 28, shared_pages=5), "modes": ["off"]}}


async def memshare(*arguments: str) -> tuple[int | None, str, str]:
    """Run the real command in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from memshare.cli import main; main()", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "NO_COLOR": "1"},
    )
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


def stale_socket(path: Path) -> None:
    """Leave behind what a killed QEMU leaves behind."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))


async def test_json_lists_sharing_plain_and_dead_guests(tmp_path: Path) -> None:
    stale_socket(tmp_path / "dead.qmp")
    (tmp_path / "notes.txt").write_text("not a socket")
    async with (
        fake_qmp(tmp_path / "a.qmp", "web1", SHARING),
        fake_qmp(tmp_path / "b.qmp", "", {}),
    ):
        code, out, err = await memshare("status", "--qmp-dir", str(tmp_path), "-o", "json")
    assert (code, err) == (0, "")
    answer = json.loads(out)
    assert answer["schema"] == 1
    plain, dead, web1 = answer["domains"]
    assert (web1["domain"], web1["state"]) == ("web1", "running")
    assert (web1["ram_bytes"], web1["shared_pages"]) == (1 << 28, 5)
    assert len(web1["window_time_ns"]) == 24
    assert (plain["domain"], plain["state"]) == ("b", "not-sharing")
    assert plain["ram_bytes"] is None
    assert (dead["domain"], dead["state"]) == ("dead", "unreachable")
    assert "connection refused" in dead["reason"]
    assert plain.keys() == dead.keys() == web1.keys()


async def test_csv_and_table(tmp_path: Path) -> None:
    async with fake_qmp(tmp_path / "a.qmp", "web1", SHARING):
        code, out, _ = await memshare("status", "--qmp-dir", str(tmp_path), "-o", "csv")
        assert code == 0
        assert next(csv.DictReader(io.StringIO(out)))["ram_bytes"] == str(1 << 28)
        code, out, _ = await memshare("status", "--qmp-dir", str(tmp_path))
        assert code == 0
        assert "DOMAIN" in out
        assert "256 MiB" in out


async def test_refusal_is_shown(tmp_path: Path) -> None:
    objects = {"memshare0": {"stats": stats(state="refused", refusal="locked memory")}}
    async with fake_qmp(tmp_path / "a.qmp", "web1", objects):
        _, out, _ = await memshare("status", "--qmp-dir", str(tmp_path))
    assert "refused" in out
    assert "locked memory" in out


async def test_no_guest_answers_is_exit_code_3(tmp_path: Path) -> None:
    stale_socket(tmp_path / "dead.qmp")
    code, out, err = await memshare("status", "--qmp-dir", str(tmp_path))
    assert code == 3
    assert "unreachable" in out
    assert err.splitlines()[0] == f"error: {tmp_path}: no guest answers"


async def test_no_folder_is_exit_code_3(tmp_path: Path) -> None:
    code, out, err = await memshare("status", "--qmp-dir", str(tmp_path / "none"))
    assert (code, out) == (3, "")
    assert err.splitlines()[0] == f"error: {tmp_path}/none: no such file or directory"
    assert err.splitlines()[1].startswith("hint: ")


async def test_no_guests_is_no_error(tmp_path: Path) -> None:
    code, out, _ = await memshare("status", "--qmp-dir", str(tmp_path), "-o", "json")
    assert (code, json.loads(out)["domains"]) == (0, [])


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

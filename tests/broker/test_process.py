# SPDX-License-Identifier: GPL-2.0-or-later
"""memshared as a process: its options, its start, its end, its sandbox."""

import os
import re
import signal
import socket
import subprocess
from pathlib import Path

import pytest
from tests.lib.broker import Broker, Client, memshared_path, page_of
from tests.lib.wire import ReplyOp


def run(*options: str) -> subprocess.CompletedProcess[str]:
    """Runs memshared to its end."""
    return subprocess.run(
        [memshared_path(), *options], capture_output=True, text=True, timeout=20, check=False
    )


def test_help_names_every_option_and_version_the_protocol() -> None:
    shown = run("--help")
    assert shown.returncode == 0
    assert shown.stderr == ""
    options = "runtime-dir group control allow-by-mode socket-mode socket-group store-limit"
    for name in (*options.split(), "log-level", "no-sandbox", "help", "version"):
        assert f"--{name}" in shown.stdout
    assert re.fullmatch(r"memshared \d+\.\d+\.\d+ \(protocol 1 to 1\)\n", run("--version").stdout)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--nonsense"], "--nonsense is not an option; see memshared --help"),
        (["--group"], "--group needs a value; see memshared --help"),
        (["--group", "Bad"], "group name 'Bad': only a-z 0-9 . _ -, not starting with a dot"),
        (["--group", "a", "--group", "a"], "--group a: given twice"),
        (["--socket-mode", "999"], "--socket-mode 999: not an octal mode such as 0660"),
        (["--socket-group", "no-such"], "--socket-group no-such: no such group"),
        (["--store-limit", "8X"], "--store-limit 8X: not a number of bytes such as 8G"),
        (["--store-limit", "-1"], "--store-limit -1: not a number of bytes such as 8G"),
        (["--store-limit", "99999999999G"], "--store-limit 99999999999G: not a number"),
        (["--log-level", "loud"], "--log-level loud: not error, info or debug"),
        (["extra"], "extra: no argument is expected; see memshared --help"),
    ],
)
def test_wrong_usage_is_one_line(options: list[str], error: str) -> None:
    ended = run(*options)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.startswith(f"memshared: error: {error}")
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_it_cleanly(number: signal.Signals) -> None:
    with (
        Broker("--group", "default", "--allow-by-mode") as broker,
        Client(broker.socket_path()).hello() as client,
    ):
        client.share(page_of(1), 1)
        assert client.share(page_of(1), 2).op == ReplyOp.MATCH
        broker.control().do("status")
        broker.process.send_signal(number)
        assert broker.process.wait(20) == 0
        assert list(broker.directory.iterdir()) == []
        assert client.hint().frame == 1, "what was sent before stays readable"
        assert client.wait_for_end() == ""


def test_I7_restart_after_sigkill_takes_over() -> None:
    options = ("--group", "default", "--allow-by-mode")
    page = page_of(1)
    with (
        Broker(*options) as dead,
        Client(dead.socket_path()).hello() as client,
    ):
        client.share(page, 1)
        slot = client.share(page, 2).slot
        client.take_messages()
        dead.kill()
        assert dead.socket_path().exists()
        with Broker(*options, directory=dead.directory) as risen:
            assert client.wait_for_end() == ""
            assert os.pread(client.segments[0], 4096, slot * 4096) == page
            with Client(risen.socket_path()).hello() as again:
                assert again.share(page, 1).op == ReplyOp.NEW


def test_live_broker_is_not_replaced(broker: Broker) -> None:
    ended = run("--runtime-dir", str(broker.directory), "--group", "default")
    assert ended.returncode == 1
    assert "control.sock is in use by another running broker" in ended.stderr
    other = str(broker.directory / "other.sock")
    ended = run("--runtime-dir", str(broker.directory), "--group", "default", "--control", other)
    assert "default.sock is in use by another running broker" in ended.stderr
    assert not Path(other).exists()
    with Client(broker.socket_path()).hello():
        pass


def test_other_file_is_not_removed(tmp_path: Path) -> None:
    precious = tmp_path / "control.sock"
    precious.write_text("precious")
    ended = run("--runtime-dir", str(tmp_path))
    assert (ended.returncode, precious.read_text()) == (1, "precious")
    assert "exists and is not a socket" in ended.stderr


def test_socket_that_is_no_longer_ours_stays(broker: Broker) -> None:
    path = broker.socket_path()
    path.unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as successor:
        successor.bind(str(path))
        assert broker.stop() == 0
        assert path.is_socket()


def test_too_long_path_is_refused(tmp_path: Path) -> None:
    ended = run("--runtime-dir", str(tmp_path / ("x" * 120)))
    assert ended.returncode == 1
    assert "too long" in ended.stderr


def test_sandbox_is_on(broker: Broker) -> None:
    text = Path(f"/proc/{broker.process.pid}/status").read_text()
    status = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
    assert {status[s] for s in ("CapPrm", "CapEff", "CapInh", "CapBnd", "CapAmb")} == {"0" * 16}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert "sandbox=on" in broker.log()


def test_service_manager_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(20)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        with Broker() as broker:
            assert manager.recv(100) == b"READY=1"
            broker.control().do("status")
        assert manager.recv(100) == b"STOPPING=1"

# SPDX-License-Identifier: GPL-2.0-or-later
"""memshared started by the service manager: its control socket is passed in, and outlives it."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.lib.broker import Control, DisconnectedError, memshared_path, wait_until


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory whose name is short enough for sockets."""
    made = Path(tempfile.mkdtemp(prefix="memshare-test-"))
    yield made
    shutil.rmtree(made)


@contextlib.contextmanager
def listening(path: Path, kind: socket.SocketKind = socket.SOCK_STREAM) -> Iterator[socket.socket]:
    """A socket as systemd passes it: bound, listening, blocking."""
    with socket.socket(socket.AF_UNIX, kind) as made:
        made.bind(str(path))
        made.listen()
        yield made


# What systemd does between fork and exec: descriptors from 3 on, LISTEN_PID the process's own.
PASS_ON = """
import fcntl, os, sys
passed = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 100) for fd in sys.argv[1].split()]
os.closerange(3, 100)
for number, fd in enumerate(passed):
    os.dup2(fd, 3 + number)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(passed)))
os.execv(sys.argv[2], sys.argv[2:])
"""


def start(directory: Path, *passed: socket.socket) -> subprocess.Popen[str]:
    """Start the broker with sockets passed in."""
    descriptors = [each.fileno() for each in passed]
    return subprocess.Popen(
        [
            *(sys.executable, "-c", PASS_ON, " ".join(map(str, descriptors))),
            *(memshared_path(), "--runtime-dir", directory),
        ],
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=descriptors,
    )


def connect(path: Path) -> Control:
    """Connect as soon as somebody listens."""
    made: list[Control] = []

    def try_to() -> bool:
        with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
            made.append(Control(path))
        return bool(made)

    wait_until(try_to, f"{path} can be connected to")
    return made[0]


@contextlib.contextmanager
def activated(directory: Path, *options: str) -> Iterator[Path]:
    """The real broker behind systemd's own tool, which starts it at the first connection."""
    path = directory / "control.sock"
    activator = subprocess.Popen(
        [
            *("systemd-socket-activate", f"--listen={path}", "--setenv=NOTIFY_SOCKET"),
            *(memshared_path(), "--runtime-dir", directory, *options),
        ],
        stderr=subprocess.DEVNULL,
    )
    try:
        yield path
    finally:
        activator.terminate()
        assert activator.wait(60) == 0


def test_the_first_who_asks_starts_it_and_the_manager_is_told(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(directory / "notify"))
        manager.settimeout(60)
        monkeypatch.setenv("NOTIFY_SOCKET", str(directory / "notify"))
        with activated(directory, "--group", "red") as path:
            control = connect(path)
            assert [group["name"] for group in control.do("status")["groups"]] == ["red"]
            assert manager.recv(100) == b"READY=1"
            control.do("group-add", group="blue")
        assert manager.recv(100) == b"STOPPING=1"
    # Groups' sockets are the broker's, the control socket is not.
    assert sorted(file.name for file in directory.iterdir()) == ["control.sock", "notify"]


def test_the_next_one_answers_who_asked_between_two(directory: Path) -> None:
    with listening(directory / "control.sock") as passed:
        first = start(directory, passed)
        with contextlib.closing(Control(directory / "control.sock")) as control:
            control.do("status")
            assert not os.get_blocking(passed.fileno()), "a connection may be gone again"
            first.kill()
            first.communicate()
            with pytest.raises((DisconnectedError, OSError)):
                control.do("status")
        waiting = Control(directory / "control.sock")  # nobody is there
        second = start(directory, passed)
        assert waiting.do("status")["pid"] == second.pid
        waiting.close()
        second.terminate()
        _, log = second.communicate(timeout=60)
        assert (second.returncode, f"control={directory}/control.sock" in log) == (0, True)


def test_a_group_does_not_take_the_passed_socket(directory: Path) -> None:
    with listening(directory / "red.sock") as passed:
        broker = start(directory, passed)
        with contextlib.closing(Control(directory / "red.sock")) as control:
            answer = control.ask("group-add", group="red")
        broker.terminate()
        broker.communicate(timeout=60)
    assert answer["error"] == f"group red: {directory}/red.sock is the control socket"


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (
            lambda path: [listening(path / "a"), listening(path / "b")],
            "the service manager passes 2 sockets: one is expected, the control socket",
        ),
        (
            lambda path: [listening(path / "a", socket.SOCK_SEQPACKET)],
            "what the service manager passes is not a listening Unix socket",
        ),
        (
            lambda path: [contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))],
            "what the service manager passes is not a listening Unix socket",
        ),
    ],
)
def test_wrong_sockets_are_one_line(
    directory: Path,
    make: Callable[[Path], list[contextlib.AbstractContextManager[socket.socket]]],
    error: str,
) -> None:
    with contextlib.ExitStack() as stack:
        passed = [stack.enter_context(each) for each in make(directory)]
        broker = start(directory, *passed)
        _, log = broker.communicate(timeout=60)
    assert broker.returncode == 1
    assert log.splitlines()[-1].startswith(f"memshared: error: {error}")

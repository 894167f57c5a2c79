# SPDX-License-Identifier: GPL-2.0-or-later
"""memshared as `packaging/systemd` has it run: its control socket is passed in, and outlives it; root's powers do not."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.lib.broker import (
    NOBODY,
    Broker,
    Control,
    RemoteClient,
    memshared_path,
    page_of,
    unified_cgroup,
    wait_until,
)
from tests.lib.wire import ReplyOp


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


@contextlib.contextmanager
def started(directory: Path, *passed: socket.socket) -> Iterator[subprocess.Popen[str]]:
    """The broker with sockets passed in; killed at the end, if it still runs."""
    descriptors = [each.fileno() for each in passed]
    with subprocess.Popen(
        [
            *(sys.executable, "-c", PASS_ON, " ".join(map(str, descriptors))),
            *(memshared_path(), "--runtime-dir", directory),
        ],
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=descriptors,
    ) as broker:
        try:
            yield broker
        finally:
            broker.kill()


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
    path = directory / "control.sock"
    with listening(path) as passed:
        with started(directory, passed), contextlib.closing(Control(path)) as control:
            control.do("status")
            assert not os.get_blocking(passed.fileno()), "a connection may be gone again"
        with contextlib.closing(Control(path)) as waiting:  # nobody is there
            with started(directory, passed) as second:
                assert waiting.do("status")["pid"] == second.pid
                second.terminate()
                _, log = second.communicate(timeout=60)
            assert (second.returncode, f"control={path}" in log) == (0, True)


def test_a_group_does_not_take_the_passed_socket(directory: Path) -> None:
    path = directory / "red.sock"
    with (
        listening(path) as passed,
        started(directory, passed),
        contextlib.closing(Control(path)) as control,
    ):
        answer = control.ask("group-add", group="red")
    assert answer["error"] == f"group red: {path} is the control socket"


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
        broker = stack.enter_context(started(directory, *passed))
        _, log = broker.communicate(timeout=60)
    assert broker.returncode == 1
    assert log.splitlines()[-1].startswith(f"memshared: error: {error}")


# Root without capabilities, a member of the sockets' group, and of /proc processes only.
HARDENED = (
    *("unshare", "--mount", "--propagation=private", "sh", "-euc"),
    *('mount -t proc -o subset=pid none /proc; exec "$@"', "sh"),
    *("setpriv", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all", "--groups=kvm"),
)


def test_what_the_unit_takes_away_is_not_missed() -> None:
    page, guest = page_of(1), str(uuid.UUID(int=1))
    with (
        unified_cgroup() as cgroup,
        Broker("--socket-group", "kvm", "--socket-mode", "0666", launcher=HARDENED) as broker,
    ):
        control = broker.control()
        control.do("group-add", group="red")
        control.do("allow", uuid=guest, group="red", cgroup=f"/{cgroup.name}")
        assert broker.socket_path("red").group() == "kvm"
        with RemoteClient(broker.socket_path("red"), NOBODY, cgroup) as client:
            client.call("hello")
            assert client.call("share", page, 1).op == ReplyOp.NEW
            assert client.call("share", page, 2).op == ReplyOp.MATCH

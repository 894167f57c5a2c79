# SPDX-License-Identifier: GPL-2.0-or-later
"""A broker under test, and clients that talk its protocol without an engine."""

import array
import contextlib
import json
import mmap
import multiprocessing
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.lib import wire
from tests.lib.wire import MessageType, Reply, ReplyOp, RequestOp

DEADLINE_SECONDS = 20.0
NOBODY = 65534


def build_directory() -> Path:
    """Where the programs under test were built."""
    root = Path(__file__).resolve().parents[2]
    return Path(os.environ.get("MEMSHARE_BUILD", root / "build")).resolve()


def memshared_path() -> Path:
    """The broker's executable."""
    return build_directory() / "qemu-plugin" / "broker" / "memshared"


def wait_until(
    condition: Callable[[], object], what: str, seconds: float = DEADLINE_SECONDS
) -> None:
    """Polls until the condition holds; fails the test, naming it, when it never does."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"never happened: {what}")
        time.sleep(0.002)


def page_of(number: int) -> bytes:
    """A page of contents that no other number has."""
    return random.Random(number).randbytes(wire.PAGE_BYTES)


class RefusedError(Exception):
    """The broker said REFUSED; the text is its reason."""


class DisconnectedError(Exception):
    """The broker closed the connection."""


class Control:
    """One connection to the control socket."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(DEADLINE_SECONDS)
        self._socket.connect(str(path))
        self._file = self._socket.makefile("rb")

    def send_line(self, line: bytes) -> dict[str, Any]:
        """Sends one line as it is, returns the answer."""
        self._socket.sendall(line + b"\n")
        answer = self._file.readline()
        if not answer.endswith(b"\n"):
            raise DisconnectedError
        decoded = json.loads(answer)
        assert isinstance(decoded, dict)
        return decoded

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Sends one command, returns the answer, also a refusal."""
        return self.send_line(json.dumps({"command": command, **arguments}).encode())

    def do(self, command: str, **arguments: Any) -> dict[str, Any]:
        """As ask; the command must be accepted."""
        answer = self.ask(command, **arguments)
        assert answer["ok"] is True, answer
        return answer

    def group(self, name: str = "default") -> dict[str, Any]:
        """That group's part of the status."""
        (found,) = [g for g in self.do("status")["groups"] if g["name"] == name]
        assert isinstance(found, dict)
        return found

    def close(self) -> None:
        """Closes the connection."""
        self._file.close()
        self._socket.close()


class Broker:
    """A running memshared with a runtime directory of its own, in its sandbox.

    launcher is a command that ends by executing what follows it.
    """

    def __init__(
        self,
        *options: str,
        directory: Path | None = None,
        user: int | None = None,
        launcher: Sequence[str] = (),
    ) -> None:
        self._own_directory = directory is None
        if directory is None:
            # Not below pytest's directory, which other users may not enter.
            directory = Path(tempfile.mkdtemp(prefix="memshare-test-"))
            directory.chmod(0o755)
            if user is not None:
                os.chown(directory, user, user)
        self.directory = directory
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__
        self.process = subprocess.Popen(
            [
                *(*launcher, memshared_path(), "--runtime-dir", directory),
                *("--log-level", "debug", *options),
            ],
            stderr=self._log,
            user=user,
            group=user,
            extra_groups=None if user is None else [],
        )
        wait_until(self._has_started, "the broker has started or ended")

    def _has_started(self) -> bool:
        return self.process.poll() is not None or "started " in self.log()

    def socket_path(self, group: str = "default") -> Path:
        """Where that group is served."""
        return self.directory / f"{group}.sock"

    def control(self) -> Control:
        """A new control connection."""
        return Control(self.directory / "control.sock")

    def log(self) -> str:
        """All that it logged so far."""
        return os.pread(self._log.fileno(), 1 << 24, 0).decode()

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        self.process.terminate()
        return self.process.wait(DEADLINE_SECONDS)

    def kill(self) -> None:
        """SIGKILL: leaves its sockets behind."""
        self.process.kill()
        self.process.wait(DEADLINE_SECONDS)

    def __enter__(self) -> Self:
        assert self.process.poll() is None, self.log()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        alive = self.process.poll() is None
        code = self.stop() if alive else self.process.returncode
        log = self.log()
        self._log.close()
        if self._own_directory:
            shutil.rmtree(self.directory, ignore_errors=True)
        if kind is None:
            # A test that ends its broker itself says so with SIGKILL, or has seen exit code 0.
            assert code in (0, -signal.SIGKILL), f"broker ended with {code}:\n{log}"


class Client:
    """A well-behaved client; its parts can be used to behave badly."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(DEADLINE_SECONDS)
        self.socket.connect(str(path))
        self.weak = wire.build_has_weak_hash(build_directory())
        self.secret = b""
        self.group = ""
        self.version = 0
        self.number = 0
        self.segments: dict[int, int] = {}
        self.retired: list[int] = []
        self.emptying: list[int] = []
        self.hints: list[Reply] = []
        self.ring: mmap.mmap
        self.descriptors: list[int] = []

    # Socket

    def receive(self) -> tuple[MessageType, bytes, list[int]]:
        """The next message and the descriptors that came with it."""
        size = array.array("i").itemsize
        try:
            data, ancillary, _, _ = self.socket.recvmsg(1024, socket.CMSG_SPACE(8 * size))
        except ConnectionResetError:
            raise DisconnectedError from None
        if not data:
            raise DisconnectedError
        fds = array.array("i")
        for level, kind, payload in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.frombytes(payload[: len(payload) - len(payload) % size])
        magic, number, length = wire.HEADER.unpack_from(data)
        assert (magic, length) == (wire.MAGIC, len(data))
        if number == MessageType.REFUSED:
            raise RefusedError(wire.REFUSED.unpack(data)[3].split(b"\0")[0].decode())
        return MessageType(number), data, list(fds)

    def hello(
        self, name: str = "test", oldest: int = 1, newest: int = 1, features: int = 0
    ) -> Self:
        """Greets; afterwards the ring is there."""
        self.socket.send(wire.hello(name, oldest, newest, features))
        kind, data, self.descriptors = self.receive()
        assert kind == MessageType.WELCOME
        _, _, _, self.version, self.number, in_force, group, self.secret = wire.WELCOME.unpack(data)
        assert in_force == features & (wire.FEATURE_EMPTYING | wire.FEATURE_LEFT)
        self.group = group.split(b"\0")[0].decode()
        assert len(self.descriptors) == 4
        self.ring = mmap.mmap(self.descriptors[1], wire.RING_BYTES)
        return self

    def say(self, message: bytes) -> None:
        """Sends one message as it is."""
        self.socket.send(message)

    def has_messages(self) -> bool:
        """Whether the socket holds a message, or its end."""
        return bool(select.select([self.socket], [], [], 0)[0])

    def wait_for_retired(self, count: int) -> None:
        """Takes messages until so many segments are retired and not forgotten."""

        def enough() -> bool:
            self.take_messages()
            return len(self.retired) >= count

        wait_until(enough, f"{count} retired segments")

    def wait_for_emptying(self, count: int) -> None:
        """Takes messages until so many segments are emptied."""

        def enough() -> bool:
            self.take_messages()
            return len(self.emptying) >= count

        wait_until(enough, f"{count} segments that are emptied")

    def take_messages(self) -> None:
        """Takes what the socket holds: segments, and what becomes of them."""
        while self.has_messages():
            kind, data, fds = self.receive()
            segment = wire.SEGMENT.unpack(data)[3]
            if kind == MessageType.SEGMENT:
                (self.segments[segment],) = fds
            elif kind == MessageType.EMPTYING:
                self.emptying.append(segment)
            else:
                assert kind == MessageType.RETIRED
                self.retired.append(segment)

    def forget(self, segment: int) -> None:
        """Closes a retired segment and says so."""
        os.close(self.segments.pop(segment))
        self.retired.remove(segment)
        self.socket.send(wire.forgotten(segment))

    # Ring

    def count(self, at: int) -> int:
        """One of the four counts of the ring."""
        return int.from_bytes(self.ring[at : at + 4], "little")

    def set_count(self, at: int, value: int) -> None:
        """Overwrites one of the four counts."""
        self.ring[at : at + 4] = (value & 0xFFFFFFFF).to_bytes(4, "little")

    def push(self, op: int, hash_: int = 0, frame: int = 0, slot: int = 0, page: int = 0) -> None:
        """Puts one request into the ring, without ringing."""
        pushed = self.count(wire.REQUESTS_PUSHED)
        at = wire.REQUESTS_AT + pushed % wire.RING_ENTRIES * wire.REQUEST.size
        wire.REQUEST.pack_into(self.ring, at, hash_, frame, slot, op, page, 0)
        self.set_count(wire.REQUESTS_PUSHED, pushed + 1)

    def ring_bell(self) -> None:
        """Tells the broker of what was pushed."""
        os.eventfd_write(self.descriptors[2], 1)

    def try_pop(self) -> Reply | None:
        """The next reply, if there is one."""
        popped = self.count(wire.REPLIES_POPPED)
        if popped == self.count(wire.REPLIES_PUSHED):
            return None
        at = wire.REPLIES_AT + popped % wire.RING_ENTRIES * wire.REPLY.size
        value, frame, slot, op = wire.REPLY.unpack_from(self.ring, at)
        self.set_count(wire.REPLIES_POPPED, popped + 1)
        return Reply(value=value, frame=frame, slot=slot, op=ReplyOp(op))

    def pop(self) -> Reply:
        """The next reply; sleeps on the eventfd as a real client does."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while (reply := self.try_pop()) is None:
            left = deadline - time.monotonic()
            ready, _, _ = select.select([self.descriptors[3]], [], [], max(left, 0))
            if not ready:
                self.take_messages()  # says it better when we were cut off
                raise AssertionError("no reply came")
            os.eventfd_read(self.descriptors[3])
        return reply

    def answer(self) -> Reply:
        """The next reply to a request; hints, which come at any time, are put aside."""
        while (reply := self.pop()).op == ReplyOp.HINT:
            self.hints.append(reply)
        return reply

    def hint(self) -> Reply:
        """The next hint; no request may be unanswered."""
        if self.hints:
            return self.hints.pop(0)
        reply = self.pop()
        assert reply.op == ReplyOp.HINT
        return reply

    # Verbs

    def hash(self, page: bytes) -> int:
        """The page's fingerprint in this group."""
        return wire.fingerprint(self.secret, page, weak=self.weak)

    def sight(self, hash_: int, frame: int) -> Reply:
        """One sighting and its reply."""
        self.push(RequestOp.SIGHT, hash_, frame)
        self.ring_bell()
        return self.answer()

    def place(self, page: bytes, index: int) -> None:
        """Puts bytes into the page area."""
        at = wire.PAGES_AT + index * wire.PAGE_BYTES
        self.ring[at : at + wire.PAGE_BYTES] = page

    def provide(self, hash_: int, frame: int, page: bytes, index: int = 0) -> Reply:
        """One PROVIDE and its reply."""
        self.place(page, index)
        self.push(RequestOp.PROVIDE, hash_, frame, page=index)
        self.ring_bell()
        return self.answer()

    def share(self, page: bytes, frame: int) -> Reply:
        """Sights a page and provides it when asked to; the last reply."""
        hash_ = self.hash(page)
        reply = self.sight(hash_, frame)
        return self.provide(hash_, frame, page) if reply.op == ReplyOp.PROVIDE else reply

    def release(self, slot: int) -> None:
        """Ends one grant."""
        self.push(RequestOp.RELEASE, slot=slot)
        self.ring_bell()

    def account(self) -> int:
        """This client's part of the store, in bytes."""
        return self._account().value

    def missed(self) -> int:
        """A number that changes when this client should sight its pages again."""
        return self._account().slot

    def _account(self) -> Reply:
        self.push(RequestOp.ACCOUNT)
        self.ring_bell()
        reply = self.answer()
        assert reply.op == ReplyOp.ACCOUNT
        return reply

    def read_slot(self, slot: int) -> bytes:
        """The slot's bytes, from the segment's descriptor."""
        self.take_messages()
        fd = self.segments[slot // wire.SEGMENT_SLOTS]
        return os.pread(fd, wire.PAGE_BYTES, slot % wire.SEGMENT_SLOTS * wire.PAGE_BYTES)

    def wait_for_end(self) -> str:
        """Reads until the broker hangs up; the reason it gave, or nothing."""
        try:
            while True:
                self.receive()
        except RefusedError as refused:
            return str(refused)
        except DisconnectedError:
            return ""

    def block_eventfd(self) -> None:
        """Makes the eventfd that the broker writes blocking, and full."""
        os.set_blocking(self.descriptors[3], True)
        os.eventfd_write(self.descriptors[3], (1 << 64) - 2)

    def close(self) -> None:
        """Closes the socket only: mappings and descriptors stay."""
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        for fd in [*self.descriptors, *self.segments.values()]:
            os.close(fd)


def _serve_calls(pipe: Connection, path: Path, user: int | None, cgroup: Path | None) -> None:
    """The body of a RemoteClient's process."""
    # Sockets of the parent kept open here would hide from the broker that the parent closed them.
    os.closerange(3, pipe.fileno())
    os.closerange(pipe.fileno() + 1, 1024)
    if cgroup is not None:
        (cgroup / "cgroup.procs").write_text(str(os.getpid()))
    if user is not None:
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
    clients: list[Client] = []
    while True:
        try:
            method, arguments = pipe.recv()
        except EOFError:
            return
        try:
            if method == "connect":
                clients.append(Client(path))
                result = None
            else:
                result = getattr(clients[-1], method)(*arguments)
            pipe.send((True, None if isinstance(result, Client) else result))
        except Exception as error:
            pipe.send((False, error))


class RemoteClient:
    """A client in a process of its own, which can be killed, or run as another user.

    Forked, not started anew: another user need not be able to read this tree.
    """

    def __init__(self, path: Path, user: int | None = None, cgroup: Path | None = None) -> None:
        fork = multiprocessing.get_context("fork")
        self._pipe, theirs = fork.Pipe()
        self.process = fork.Process(
            target=_serve_calls, args=(theirs, path, user, cgroup), daemon=True
        )
        self.process.start()
        theirs.close()
        self.call("connect")

    @property
    def pid(self) -> int:
        """Its process."""
        assert self.process.pid is not None
        return self.process.pid

    def call(self, method: str, *arguments: Any) -> Any:
        """Calls a method of the Client over there; "connect" makes a new one."""
        self._pipe.send((method, arguments))
        good, result = self._pipe.recv()
        if not good:
            raise result
        return result

    def kill(self) -> None:
        """SIGKILL; returns when it is gone."""
        self.process.kill()
        self.process.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._pipe.close()


def wait_until_empty(cgroup: Path) -> None:
    """Returns when no process is left in that cgroup."""
    wait_until(lambda: not (cgroup / "cgroup.procs").read_text(), f"{cgroup} is empty")


@contextlib.contextmanager
def unified_cgroup() -> Iterator[Path]:
    """A new cgroup (v2) of our own, as root; everything is put back."""
    mount = Path(tempfile.mkdtemp(prefix="memshare-test-cgroup-"))
    subprocess.run(["mount", "-t", "cgroup2", "none", mount], check=True)
    cgroup = mount / f"memshare-test-{os.getpid()}"
    try:
        cgroup.mkdir()
        (cgroup / "below").mkdir()
        yield cgroup
    finally:
        for part in (cgroup / "below", cgroup):
            if part.exists():
                wait_until_empty(part)
                part.rmdir()
        subprocess.run(["umount", mount], check=True)
        mount.rmdir()

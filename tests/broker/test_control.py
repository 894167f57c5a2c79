# SPDX-License-Identifier: GPL-2.0-or-later
"""The control socket."""

import contextlib
import json
import os
import random
import socket
import threading
from pathlib import Path

import pytest
from tests.lib.broker import Broker, Client, Control, page_of, wait_until
from tests.lib.wire import ReplyOp, RequestOp

UUID = "00000000-0000-0000-0000-000000000001"


def test_status_has_everything(broker: Broker, control: Control) -> None:
    with Client(broker.socket_path()).hello('vm "1"\\'):
        status = control.do("status")
    assert (status["version"], status["protocol"], status["pid"]) == (
        "0.1.0",
        1,
        broker.process.pid,
    )
    (group,) = status["groups"]
    assert set(group) == {
        *("name", "socket", "members", "segments", "store_bytes", "slots_live", "slots_dead"),
        *("grants", "table_entries", "table_bytes", "sightings", "provides", "rejected_provides"),
        *("matches", "releases", "bad_releases", "refused_full", "sessions"),
    }
    (session,) = group["sessions"]
    assert set(session) == {"guest", "state", "pid", "uid", "grants", "cost_bytes"}
    assert session["guest"] == "vm ?1??"


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b"", "not a JSON object"),
        (b"nonsense", "not a JSON object"),
        (b"[1]", "not a JSON object"),
        (b'{"command":"status"', "not a JSON object"),
        (b'{"command":"status"} {}', "not a JSON object"),
        (b'{"command":"status"}\0', "not a JSON object"),
        (b"\xff\xfe", "not a JSON object"),
        (b"[" * 60000, "not a JSON object"),
        (b"{}", '"command" must be a string'),
        (b'{"command":1}', '"command" must be a string'),
        (b'{"command":"status\\u0000"}', "zero byte"),
        (b'{"command":"reboot"}', "unknown command"),
        (b'{"command":"allow"}', '"group" must be a string'),
        (b'{"command":"group-add","group":"../etc"}', "group name"),
        (b'{"command":"group-add","group":"default"}', "served already"),
        (b'{"command":"group-add","group":"control"}', "is the control socket"),
        (b'{"command":"group-remove","group":"other"}', "no group other"),
        (b'{"command":"group-remove","group":"default","force":1}', '"force" must be'),
        (b'{"command":"audit"}', '"group" must be a string'),
        (b'{"command":"audit","group":"other"}', "no group other"),
        (b'{"command":"forget","uuid":"1"}', "uuid must be"),
        (b'{"command":"forget","uuid":"' + UUID.encode() + b'"}', "was announced"),
        (b'{"command":"log-level","level":"loud"}', '"level" must be'),
        (b'{"command":"log-level"}', '"level" must be'),
    ],
)
def test_bad_line_is_answered(control: Control, line: bytes, error: str) -> None:
    answer = control.send_line(line)
    assert answer["ok"] is False
    assert error in answer["error"]
    control.do("status")


@pytest.mark.parametrize("cgroup", ["relative", "", "/a\n0::/b", "/" + "x" * 5000])
def test_bad_cgroup_is_refused(control: Control, cgroup: str) -> None:
    answer = control.ask("allow", uuid=UUID, group="default", cgroup=cgroup)
    assert "cgroup must be" in answer["error"]


def test_endless_line_ends_that_connection_only(broker: Broker, control: Control) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as long:
        long.connect(str(broker.directory / "control.sock"))
        long.settimeout(20)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            long.sendall(b"x" * 200_000)
        with contextlib.suppress(ConnectionResetError):
            assert b"longer than" in long.recv(4096)
    control.do("status")


def test_reader_that_does_not_read_holds_up_nobody(broker: Broker, control: Control) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as lazy:
        lazy.connect(str(broker.directory / "control.sock"))
        lazy.setblocking(False)
        line, sent_bytes = b'{"command":"status"}\n', 0
        with pytest.raises(BlockingIOError):
            while True:
                sent_bytes += lazy.send(line * 100)
        control.do("status")
        # Every answer still arrives, whole, once it reads.
        lazy.settimeout(20)
        answers = lazy.makefile("rb")
        for _ in range(sent_bytes // len(line)):
            assert json.loads(answers.readline())["ok"] is True
    control.do("status")


def test_random_lines_never_end_the_broker(control: Control) -> None:
    source = random.Random(2)
    pieces = [b'"command"', b":", b"{", b"}", b'"allow"', b"[", b"]", b",", b'"group"', b"\\u0000"]
    for _ in range(500):
        line = b"".join(source.choices([*pieces, source.randbytes(3)], k=source.randrange(12)))
        assert "ok" in control.send_line(line.replace(b"\n", b" "))


def test_groups_come_and_go(broker: Broker, control: Control) -> None:
    control.do("group-add", group="more")
    assert [g["name"] for g in control.do("status")["groups"]] == ["default", "more"]
    with Client(broker.socket_path("more")).hello() as client:
        refused = control.ask("group-remove", group="more")
        assert "has sessions" in refused["error"]
        client.share(page_of(1), 1)
        slot = client.share(page_of(1), 2).slot
        client.take_messages()
        control.do("group-remove", group="more", force=True)
        assert client.wait_for_end() == ""
        assert not broker.socket_path("more").exists()
        assert os.pread(client.segments[0], 4096, slot * 4096) == page_of(1), "still mapped"
    control.do("group-add", group="more")
    with Client(broker.socket_path("more")).hello() as client:
        assert client.share(page_of(1), 1).op == ReplyOp.NEW


def test_log_level_changes_at_once(broker: Broker, control: Control) -> None:
    control.do("log-level", level="error")
    control.do("group-add", group="quiet")
    assert "group_added group=quiet" not in broker.log()
    control.do("log-level", level="info")
    control.do("group-add", group="loud")
    assert "group_added group=loud" in broker.log()


def test_status_while_busy(broker: Broker, control: Control) -> None:
    with Client(broker.socket_path()).hello("busy") as client:
        stop = threading.Event()

        def hammer() -> None:
            frame = 0
            while not stop.is_set():
                for _ in range(64):
                    frame += 1
                    client.push(RequestOp.SIGHT, 1 + frame % 200, frame)
                client.ring_bell()
                for _ in range(64):
                    assert client.answer().op in (ReplyOp.NEW, ReplyOp.PROVIDE)

        thread = threading.Thread(target=hammer)
        thread.start()
        try:
            wait_until(lambda: control.group()["sightings"] > 20_000, "20,000 sightings")
            audit = control.do("audit", group="default")
        finally:
            stop.set()
            thread.join()
        assert control.group()["sessions"][0]["guest"] == "busy"
        assert audit["problems"] == []


@pytest.mark.full_hash
def test_audit_of_guests_that_share_and_of_those_that_left(
    broker: Broker, control: Control
) -> None:
    with Client(broker.socket_path()).hello("a") as client:
        with Client(broker.socket_path()).hello("b") as other:
            for number in range(10):
                client.share(page_of(number), 1 + number)
                other.share(page_of(number), 1 + number)
            assert control.do("audit", group="default") == {
                "ok": True,
                "group": "default",
                "slots": 10,
                "grants": 20,
                "entries": 10,
                "hashed_slots": 10,
                "problem_count": 0,
                "problems": [],
            }
        assert control.do("audit", group="default")["problems"] == []


def test_audit_finds_a_slot_whose_bytes_have_changed(broker: Broker, control: Control) -> None:
    """What the kernel keeps everybody from doing, root does in the broker's own memory."""
    with Client(broker.socket_path()).hello() as client:
        client.share(page_of(1), 1)
        slot = client.share(page_of(1), 2).slot
        number = next(
            n for n in range(2, 100) if client.hash(page_of(n)) != client.hash(page_of(1))
        )
        (begin,) = (
            int(line.split("-")[0], 16)
            for line in Path(f"/proc/{broker.process.pid}/maps").read_text().splitlines()
            if "memfd:memshare-default-0" in line and " rw-s " in line
        )
        with Path(f"/proc/{broker.process.pid}/mem").open("r+b", buffering=0) as memory:
            memory.seek(begin + slot * 4096)
            memory.write(page_of(number))
        audit = control.do("audit", group="default")
    assert (audit["problem_count"], audit["problems"]) == (
        1,
        [f"slot {slot} of segment 0: its bytes are not those that were shared"],
    )

# SPDX-License-Identifier: GPL-2.0-or-later
"""garbage_client: breaks the protocol in every way; is cut off, alone, and told why."""

import contextlib
import os
import random
import socket
import struct
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from tests.lib import wire
from tests.lib.broker import (
    Broker,
    Client,
    Control,
    DisconnectedError,
    RefusedError,
    RemoteClient,
    build_directory,
    page_of,
    wait_until,
)
from tests.lib.wire import MessageType, ReplyOp, RequestOp

WEAK = wire.build_has_weak_hash(build_directory())


@pytest.fixture(autouse=True)
def bystander(broker: Broker) -> Iterator[Client]:
    """A client that shared before the attack, and must still be served after it."""
    with Client(broker.socket_path()).hello("bystander") as client:
        client.share(page_of(1), 1)
        slot = client.share(page_of(1), 2).slot
        assert client.hint().slot == slot
        yield client
        assert client.share(page_of(1), 3).op == ReplyOp.MATCH
        assert client.read_slot(slot) == page_of(1)
        sessions = broker.control().group()["sessions"]
        assert [s["state"] for s in sessions if s["guest"] == "bystander"] == ["active"]
        assert broker.process.poll() is None, broker.log()


def header(kind: int, length: int, magic: int = wire.MAGIC) -> bytes:
    """Any header."""
    return wire.HEADER.pack(magic, kind, length)


NAME_WITHOUT_END = wire.HELLO.pack(wire.MAGIC, 1, wire.HELLO.size, 1, 1, 0, b"x" * 64)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"x", "too short"),
        (wire.hello()[:40], "88 bytes long, not 40"),
        (wire.hello() + b"x", "88 bytes long, not 89"),
        (b"\0" * 88, "bad magic"),
        (header(99, 8), "unknown type 99"),
        (header(1, 80) + b"\0" * 80, "88 bytes long"),
        (b"x" * 513, "513 bytes is too long"),
        (b"x" * 100_000, "100000 bytes is too long"),
        (NAME_WITHOUT_END, "has no end"),
        (wire.forgotten(0), "message 6 before HELLO"),
        (wire.left(1), "message 8 before HELLO"),
        (wire.forgotten(1 << 20), "out of range"),
        (wire.SEGMENT.pack(wire.MAGIC, 4, wire.SEGMENT.size, 0, 0), "message 4 before HELLO"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_first_message(broker: Broker, message: bytes, reason: str) -> None:
    with Client(broker.socket_path()) as client:
        client.socket.send(message)
        assert reason in client.wait_for_end()
    assert reason in broker.log()


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (wire.hello(), "message 1 is not for a client to send now"),
        (wire.forgotten(0), "FORGOTTEN of segment 0, which is not retired"),
        (wire.forgotten(77), "FORGOTTEN of segment 77, which is not retired"),
        (wire.left(1), "message 8 is not for a client to send now"),
        (b"nonsense", "bad magic"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_later_message(broker: Broker, message: bytes, reason: str) -> None:
    with Client(broker.socket_path()).hello("bad") as client:
        client.socket.send(message)
        assert reason in client.wait_for_end()
    assert f'client_cut_off group=default guest="bad" pid={os.getpid()} ' in broker.log()


def test_reason_is_not_lost_behind_unread_messages(broker: Broker) -> None:
    with Client(broker.socket_path()) as client:
        with contextlib.suppress(BrokenPipeError):
            for _ in range(100):
                client.socket.send(b"nonsense")
        assert "bad magic" in client.wait_for_end()


def test_empty_message_is_the_end(broker: Broker) -> None:
    with Client(broker.socket_path()) as client:
        client.socket.send(b"")
        assert client.wait_for_end() == ""


def test_random_messages(broker: Broker) -> None:
    source = random.Random(3)
    for _ in range(300):
        with Client(broker.socket_path()) as client:
            if source.random() < 0.5:
                client.hello("fuzz")
            for _ in range(source.randrange(1, 4)):
                kind = source.randrange(8)
                body = source.randbytes(source.choice([0, 8, 80, 184, 272]))
                good = source.random() < 0.8
                try:
                    client.socket.send(
                        header(kind, 8 + len(body) if good else source.randrange(1 << 16)) + body
                    )
                except (BrokenPipeError, ConnectionResetError):
                    break


def test_descriptors_sent_along_are_not_kept(broker: Broker) -> None:
    before = len(os.listdir(f"/proc/{broker.process.pid}/fd"))
    with Client(broker.socket_path()) as client:
        socket.send_fds(client.socket, [wire.hello()], [0] * 100)
        kind, _, client.descriptors = client.receive()
        assert kind == MessageType.WELCOME
        # Its socket, process, and two eventfds; the ring's file is closed when WELCOME is on its way.
        wait_until(
            lambda: len(os.listdir(f"/proc/{broker.process.pid}/fd")) <= before + 4, "closed"
        )


def bad_op(client: Client) -> None:
    client.push(99)


def zero_op(client: Client) -> None:
    client.push(0)


def bad_page(client: Client) -> None:
    client.push(RequestOp.PROVIDE, 1, page=wire.RING_PAGES)


def last_page(client: Client) -> None:
    client.push(RequestOp.PROVIDE, 1, page=0xFFFF)


def zero_hash(client: Client) -> None:
    client.push(RequestOp.SIGHT, 0)


def pushed_too_far(client: Client) -> None:
    client.set_count(wire.REQUESTS_PUSHED, wire.RING_ENTRIES + 1)


def pushed_backwards(client: Client) -> None:
    client.set_count(wire.REQUESTS_PUSHED, -1)


def popped_what_never_was(client: Client) -> None:
    client.set_count(wire.REPLIES_POPPED, 5)
    client.push(RequestOp.SIGHT, 1)


def never_reads_replies(client: Client) -> None:
    for _ in range(wire.RING_ENTRIES // wire.RING_OUTSTANDING + 1):
        for frame in range(wire.RING_OUTSTANDING):
            client.push(RequestOp.SIGHT, 1 + frame % 200, frame)
        client.ring_bell()
        wait_until(
            lambda: (
                client.count(wire.REQUESTS_POPPED) == client.count(wire.REQUESTS_PUSHED)
                or client.count(wire.REPLIES_PUSHED) == wire.RING_ENTRIES
            ),
            "served, or full",
        )


def releases_what_it_has_not(client: Client) -> None:
    for slot in range(100):
        client.push(RequestOp.RELEASE, slot=slot * 40_000_000 % (1 << 32))


@pytest.mark.parametrize(
    ("attack", "reason"),
    [
        (bad_op, "unknown request 99"),
        (zero_op, "unknown request 0"),
        (bad_page, "PROVIDE with page 256 of 256"),
        (last_page, "PROVIDE with page 65535 of 256"),
        (zero_hash, "hash 0"),
        (pushed_too_far, "count of requests cannot be true"),
        (pushed_backwards, "count of requests cannot be true"),
        (popped_what_never_was, "count of replies cannot be true"),
        (never_reads_replies, f"more than {wire.RING_OUTSTANDING} requests unanswered"),
        (releases_what_it_has_not, "65 releases of slots it holds no grant on"),
    ],
)
def test_bad_ring(broker: Broker, attack: Callable[[Client], None], reason: str) -> None:
    with Client(broker.socket_path()).hello("bad") as client:
        attack(client)
        client.ring_bell()
        assert reason in client.wait_for_end()
    assert 'client_cut_off group=default guest="bad"' in broker.log()


def test_a_few_wrong_releases_are_forgiven(broker: Broker, control: Control) -> None:
    with Client(broker.socket_path()).hello() as client:
        for slot in range(64):
            client.push(RequestOp.RELEASE, slot=1000 + slot)
        client.ring_bell()
        assert client.sight(1, 1).op == ReplyOp.NEW
        assert control.group()["bad_releases"] == 64


def wait_until_looked_at(client: Client) -> None:
    """Returns when the broker has taken requests, or said something."""
    wait_until(
        lambda: client.has_messages() or client.count(wire.REQUESTS_POPPED) > 0,
        "the broker has looked",
    )


def test_random_ring_contents(broker: Broker) -> None:
    source = random.Random(4)
    outcomes = Counter[str]()
    for _ in range(300):
        with Client(broker.socket_path()).hello("fuzz") as client:
            end = wire.PAGES_AT + wire.PAGE_BYTES
            client.ring[0:end] = source.randbytes(end)
            client.set_count(wire.REQUESTS_POPPED, 0)
            if source.random() < 0.9:  # counts that pass, so that entries are looked at
                client.set_count(wire.REQUESTS_PUSHED, source.randrange(1, wire.RING_ENTRIES))
                client.set_count(wire.REPLIES_POPPED, 0)
            if source.random() < 0.9:  # operations and pages that exist
                for entry in range(wire.RING_ENTRIES):
                    at = wire.REQUESTS_AT + entry * wire.REQUEST.size + 16
                    op = source.choices([1, 2, 3, 4], [40, 40, 1, 0.01])[0]
                    client.ring[at : at + 4] = struct.pack("=HH", op, source.randrange(257))
            client.ring_bell()
            wait_until_looked_at(client)
            outcome = "served"
            try:
                client.take_messages()
            except (RefusedError, DisconnectedError):
                outcome = "cut off"
            outcomes[outcome] += 1
    assert outcomes["cut off"] > 20, outcomes


def test_hint_to_a_client_with_a_ruined_ring(broker: Broker, bystander: Client) -> None:
    page = page_of(2)
    with Client(broker.socket_path()).hello("ruined") as client:
        assert client.share(page, 1).op == ReplyOp.NEW
        client.set_count(wire.REPLIES_POPPED, 12345)
        assert bystander.share(page, 4).op == ReplyOp.MATCH
        assert "count of replies cannot be true" in client.wait_for_end()


def test_full_and_blocking_eventfd_holds_up_nobody(broker: Broker, bystander: Client) -> None:
    with RemoteClient(broker.socket_path()) as hostile:
        hostile.call("hello", "hostile")
        hostile.call("block_eventfd")
        hostile.call("push", RequestOp.SIGHT, 1, 1)
        hostile.call("ring_bell")
        assert "eventfd cannot be written" in hostile.call("wait_for_end")
        assert bystander.share(page_of(1), 5).op == ReplyOp.MATCH


def test_bells_without_requests_are_paced(broker: Broker, bystander: Client) -> None:
    with Client(broker.socket_path()).hello() as client:
        for _ in range(300_000):
            os.eventfd_write(client.descriptors[2], 1)
        assert bystander.share(page_of(1), 6).op == ReplyOp.MATCH
        assert client.sight(1, 1).op in (ReplyOp.NEW, ReplyOp.PROVIDE)


def test_client_over_its_quota_is_served_later(broker: Broker, bystander: Client) -> None:
    with Client(broker.socket_path()).hello() as client:
        for turn in range(3):
            for _ in range(20):  # dear ones
                client.push(RequestOp.ACCOUNT)
            client.ring_bell()
            assert bystander.share(page_of(1), 10 + turn).op == ReplyOp.MATCH
            assert {client.answer().op for _ in range(20)} == {ReplyOp.ACCOUNT}


def share_and_release(client: Client, number: int) -> ReplyOp:
    """Fills one slot and lets its segment retire: a SEGMENT and a RETIRED over the socket."""
    page = page_of(1000 + number)
    assert client.share(page, 2 * number).op == ReplyOp.NEW
    match = client.share(page, 2 * number + 1)
    if match.op == ReplyOp.MATCH:
        assert client.hint().slot == match.slot
        client.release(match.slot)
        client.release(match.slot)
    return match.op


@pytest.mark.skipif(WEAK, reason="needs more different hashes than the 8-bit build has")
def test_client_that_does_not_read_its_socket(broker: Broker, control: Control) -> None:
    control.do("group-add", group="deaf")
    with Client(broker.socket_path("deaf")).hello("deaf") as client:
        rounds = 0
        while share_and_release(client, rounds) == ReplyOp.MATCH:
            rounds += 1
            assert rounds < 5000, "its socket never filled up"
        assert rounds > 10
        wait_until(lambda: control.group("deaf")["grants"] == 0, "the grant was taken back")
        client.wait_for_retired(rounds + 1)  # all was kept for it
        assert share_and_release(client, rounds + 1) == ReplyOp.MATCH


def test_connections_that_say_nothing_are_few_and_short(broker: Broker, bystander: Client) -> None:
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(Client(broker.socket_path())) for _ in range(4)]
        with Client(broker.socket_path()) as fifth:
            assert fifth.wait_for_end() == ""
        assert f"process {os.getpid()} has 4 connections without HELLO" in broker.log()
        for client in silent:
            assert client.wait_for_end() == "no HELLO within 5 s"
    with Client(broker.socket_path()).hello() as client:
        assert client.share(page_of(1), 1).op == ReplyOp.MATCH


def test_too_many_sessions_of_a_process(broker: Broker) -> None:
    with RemoteClient(broker.socket_path()) as client:
        for turn in range(16):
            if turn:
                client.call("connect")
            client.call("hello", f"turn {turn}")
            client.call("share", page_of(1), 1)
        client.call("connect")
        with pytest.raises(Exception, match="too many sessions"):
            client.call("hello", "one too many")

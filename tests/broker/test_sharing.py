# SPDX-License-Identifier: GPL-2.0-or-later
"""The protocol between well-behaved clients and the broker."""

import errno
import fcntl
import mmap
import os
import resource
from collections import Counter

import pytest
from tests.lib import wire
from tests.lib.broker import (
    NOBODY,
    Broker,
    Client,
    Control,
    RefusedError,
    RemoteClient,
    build_directory,
    page_of,
    wait_until,
)
from tests.lib.wire import ReplyOp, RequestOp

WEAK = wire.build_has_weak_hash(build_directory())
F_GET_SEALS, F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW = 1034, 1, 2, 4


@pytest.mark.parametrize(("oldest", "newest"), [(1, 1), (1, 9), (0, 1)])
def test_hello_chooses_the_newest_common_version(broker: Broker, oldest: int, newest: int) -> None:
    with Client(broker.socket_path()).hello("vm1", oldest, newest) as client:
        assert client.version == 1
        assert client.group == "default"
        assert len(set(client.secret)) > 50
        seals = fcntl.fcntl(client.descriptors[1], F_GET_SEALS)
        assert seals == F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW
        assert os.readlink(f"/proc/self/fd/{client.descriptors[0]}") == "/dev/userfaultfd"


@pytest.mark.parametrize(("oldest", "newest"), [(2, 9), (0, 0), (9, 2)])
def test_hello_without_a_common_version_is_refused(
    broker: Broker, oldest: int, newest: int
) -> None:
    with (
        Client(broker.socket_path()) as client,
        pytest.raises(RefusedError, match=f"protocol {oldest} to {newest}.*speaks 1 to 1"),
    ):
        client.hello("vm1", oldest, newest)


def test_two_clients_share(broker: Broker, control: Control) -> None:
    page = page_of(1)
    with (
        Client(broker.socket_path()).hello("first") as first,
        Client(broker.socket_path()).hello("second") as second,
    ):
        hash_ = first.hash(page)
        assert first.sight(hash_, 7).op == ReplyOp.NEW
        assert first.sight(hash_, 7).op == ReplyOp.NEW, "the same sighting is not a second one"
        asked = second.sight(hash_, 9)
        assert (asked.op, asked.frame) == (ReplyOp.PROVIDE, 9)
        match = second.provide(hash_, 9, page, index=255)
        assert (match.op, match.frame) == (ReplyOp.MATCH, 9)
        hint = first.hint()
        assert (hint.op, hint.frame, hint.slot) == (ReplyOp.HINT, 7, match.slot)
        assert first.read_slot(hint.slot) == second.read_slot(match.slot) == page
        again = first.sight(hash_, 8)
        assert (again.op, again.frame, again.slot) == (ReplyOp.MATCH, 8, match.slot)

        group = control.group()
        assert group["grants"] == 3
        assert group["slots_live"] == 1
        assert {s["guest"]: s["grants"] for s in group["sessions"]} == {"first": 2, "second": 1}
        assert first.account() + second.account() == pytest.approx(wire.PAGE_BYTES, abs=2)
        assert first.account() > second.account()

        for client, times in ((first, 2), (second, 1)):
            for _ in range(times):
                client.release(match.slot)
        wait_until(lambda: control.group()["grants"] == 0, "all grants released")
        assert control.group()["segments"] == 0
        for client in (first, second):
            client.wait_for_retired(1)
            client.forget(client.retired[0])
        assert first.sight(hash_, 7).op == ReplyOp.NEW, "the page is seen for the first time again"
        assert len(control.group()["sessions"]) == 2, "nobody was cut off"


def test_unasked_bytes_are_not_stored(broker: Broker, control: Control) -> None:
    with Client(broker.socket_path()).hello() as client:
        page = page_of(2)
        assert client.provide(client.hash(page), 1, page).op == ReplyOp.NEW
        assert control.group()["store_bytes"] == 0


def test_a_match_that_cannot_be_told_is_given_back_and_asked_for_again(
    broker: Broker, control: Control
) -> None:
    page = page_of(3)
    with (
        Client(broker.socket_path()).hello("first") as first,
        Client(broker.socket_path()).hello("second") as second,
        Client(broker.socket_path()).hello("third") as third,
    ):
        hash_ = first.hash(page)
        first.sight(hash_, 1)
        slot = second.share(page, 2).slot
        missed = third.missed()
        _, hard = resource.prlimit(broker.process.pid, resource.RLIMIT_NOFILE)
        before = resource.prlimit(broker.process.pid, resource.RLIMIT_NOFILE, (0, hard))
        assert third.sight(hash_, 3).op == ReplyOp.NEW, "there is no descriptor for its segment"
        assert control.group()["grants"] == 2
        assert third.missed() != missed, "its pages are to be sighted again"
        resource.prlimit(broker.process.pid, resource.RLIMIT_NOFILE, before)
        again = third.sight(hash_, 3)
        assert (again.op, again.slot) == (ReplyOp.MATCH, slot)
        assert third.read_slot(slot) == page


def test_many_requests_in_one_batch_are_all_answered(broker: Broker) -> None:
    with Client(broker.socket_path()).hello() as client:
        for frame in range(wire.RING_OUTSTANDING):
            client.push(RequestOp.SIGHT, 1 + frame % 255, frame)
        client.ring_bell()
        frames = [client.answer().frame for _ in range(wire.RING_OUTSTANDING)]
        assert frames == list(range(wire.RING_OUTSTANDING))


@pytest.mark.skipif(WEAK, reason="needs more different hashes than the 8-bit build has")
def test_hints_leave_room_for_answers(broker: Broker, control: Control) -> None:
    room = wire.RING_ENTRIES - wire.RING_OUTSTANDING
    pages = [page_of(100 + i) for i in range(room + 80)]
    with (
        Client(broker.socket_path()).hello("first") as first,
        Client(broker.socket_path()).hello("second") as second,
    ):
        for frame, page in enumerate(pages):
            assert first.sight(first.hash(page), frame).op == ReplyOp.NEW
        for frame, page in enumerate(pages):
            assert second.share(page, frame).op == ReplyOp.MATCH
        for frame in range(wire.RING_OUTSTANDING):
            first.push(RequestOp.SIGHT, first.hash(pages[frame]), 10_000 + frame)
        first.ring_bell()
        expected = room + wire.RING_OUTSTANDING
        got = Counter(first.pop().op for _ in range(expected))
        assert got == {ReplyOp.HINT: room, ReplyOp.MATCH: wire.RING_OUTSTANDING}
        assert first.try_pop() is None, "what did not fit was dropped"
        assert control.group()["grants"] == len(pages) + expected, "and its grants taken back"


def test_full_store_answers_new() -> None:
    with (
        Broker("--group", "default", "--allow-by-mode", "--store-limit", "4K") as broker,
        Client(broker.socket_path()).hello() as client,
    ):
        first, second = page_of(3), page_of(4)
        assert client.share(first, 1).op == ReplyOp.NEW
        assert client.share(first, 2).op == ReplyOp.MATCH
        assert client.hint().slot == 0
        assert client.share(second, 3).op == ReplyOp.NEW
        assert client.share(second, 4).op == ReplyOp.NEW
        group = broker.control().group()
        assert (group["store_bytes"], group["refused_full"]) == (4096, 1)


def test_I3_other_user_cannot_change_a_segment(broker: Broker) -> None:
    page = page_of(5)
    with (
        RemoteClient(broker.socket_path(), user=NOBODY) as other,
        Client(broker.socket_path()).hello() as client,
    ):
        other.call("hello", "nobody")
        assert other.call("share", page, 1).op == ReplyOp.NEW
        slot = client.share(page, 1).slot
        assert other.call("hint").slot == slot
        assert other.call("read_slot", slot) == page
        client.read_slot(slot)
        fd = client.segments[slot // wire.SEGMENT_SLOTS]
        for attack in (  # as root: the seals, not the permissions, must hold
            lambda: os.pwrite(fd, b"x", 0),
            lambda: os.ftruncate(fd, 0),
            lambda: mmap.mmap(fd, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE),
            lambda: os.pwrite(os.open(f"/proc/self/fd/{fd}", os.O_RDWR), b"x", 0),
            lambda: mmap.mmap(os.open(f"/proc/self/fd/{fd}", os.O_RDWR), 4096),
        ):
            with pytest.raises(OSError) as caught:
                attack()
            assert caught.value.errno in (errno.EBADF, errno.EPERM, errno.EACCES, errno.EINVAL)
        assert client.read_slot(slot) == page


def test_I5_another_group_sees_nothing() -> None:
    options = ("--group", "a", "--group", "b", "--allow-by-mode")
    page = page_of(6)
    with (
        Broker(*options) as broker,
        Client(broker.socket_path("a")).hello() as one,
        Client(broker.socket_path("a")).hello() as two,
        Client(broker.socket_path("b")).hello() as other,
    ):
        assert one.secret == two.secret != other.secret
        one.share(page, 1)
        slot = two.share(page, 1).slot
        for hash_ in {one.hash(page), other.hash(page)}:
            assert other.sight(hash_, 1).op == ReplyOp.NEW
        other.release(slot)
        other.take_messages()
        assert not other.segments
        assert broker.control().group("a")["grants"] == 2
        assert broker.control().group("b")["bad_releases"] == 1


def test_I6_killed_client_returns_its_slots(broker: Broker, control: Control) -> None:
    pages = [page_of(200 + i) for i in range(20)]
    with (
        Client(broker.socket_path()).hello("keeps") as keeps,
        RemoteClient(broker.socket_path()) as dies,
    ):
        dies.call("hello", "dies")
        for frame, page in enumerate(pages):
            keeps.share(page, frame)
            assert dies.call("share", page, frame).op == ReplyOp.MATCH
        held = {s["guest"]: s["grants"] for s in control.group()["sessions"]}
        assert held["dies"] == len(pages)
        dies.kill()
        wait_until(lambda: len(control.group()["sessions"]) == 1, "the dead client is gone")
        group = control.group()
        assert group["grants"] == group["sessions"][0]["grants"] == held["keeps"]
        assert keeps.share(pages[0], 99).op == ReplyOp.MATCH


def test_I6_grants_outlive_the_socket_not_the_process(broker: Broker, control: Control) -> None:
    page = page_of(7)
    with RemoteClient(broker.socket_path()) as client:
        client.call("hello", "vm1")
        client.call("share", page, 1)
        assert client.call("share", page, 2).op == ReplyOp.MATCH
        client.call("close")
        wait_until(lambda: control.group()["sessions"][0]["state"] == "departed", "it has departed")
        assert control.group()["grants"] == 2

        client.call("connect")
        client.call("hello", "vm1")
        assert client.call("share", page, 1).op == ReplyOp.MATCH
        states = sorted(s["state"] for s in control.group()["sessions"])
        assert states == ["active", "departed"]
        assert control.group()["grants"] == 3

        client.kill()
        wait_until(lambda: not control.group()["sessions"], "both are gone")
        assert control.group()["grants"] == 0


def test_I6_a_process_says_that_an_earlier_session_of_its_own_is_over(
    broker: Broker, control: Control
) -> None:
    def states() -> list[tuple[str, int]]:
        return sorted((s["state"], s["grants"]) for s in control.group()["sessions"])

    page = page_of(11)
    with (
        Client(broker.socket_path()).hello("vm1", features=wire.FEATURE_LEFT) as again,
        RemoteClient(broker.socket_path()) as other,
    ):
        with Client(broker.socket_path()).hello("vm1", features=wire.FEATURE_LEFT) as first:
            first.share(page, 1)
            assert first.share(page, 2).op == ReplyOp.MATCH
        departed = [("active", 0), ("active", 0), ("departed", 2)]
        other.call("hello", "other", 1, 1, wire.FEATURE_LEFT)
        wait_until(lambda: states() == departed, "the first session has departed")

        other.call("say", wire.left(first.number))
        again.socket.send(wire.left(first.number ^ 1))
        again.socket.send(wire.left(again.number))
        assert other.call("sight", 1, 1).op == again.sight(2, 1).op == ReplyOp.NEW
        assert states() == departed, "neither was it another's to say, nor the one that was meant"

        again.socket.send(wire.left(first.number))
        wait_until(lambda: states() == departed[:2], "it is over")
        assert control.group()["grants"] == 0


def test_departed_client_gets_no_hint(broker: Broker, control: Control) -> None:
    held, sighted = page_of(9), page_of(10)
    with (
        RemoteClient(broker.socket_path()) as departed,
        Client(broker.socket_path()).hello("second") as second,
    ):
        departed.call("hello", "departed")
        departed.call("share", held, 1)
        assert departed.call("share", held, 2).op == ReplyOp.MATCH
        assert departed.call("share", sighted, 3).op == ReplyOp.NEW
        departed.call("close")
        wait_until(
            lambda: "departed" in [s["state"] for s in control.group()["sessions"]], "departed"
        )
        assert second.share(sighted, 1).op == ReplyOp.NEW, "its sightings count for nothing"
        assert {s["guest"]: s["grants"] for s in control.group()["sessions"]} == {
            "departed": 2,
            "second": 0,
        }
        assert second.share(held, 2).op == ReplyOp.MATCH, "what it holds can be shared"


def test_session_without_grants_is_gone_when_it_closes(broker: Broker, control: Control) -> None:
    page = page_of(8)
    with Client(broker.socket_path()).hello() as client:
        client.share(page, 1)
        slot = client.share(page, 2).slot
        client.push(RequestOp.RELEASE, slot=slot)
        client.push(RequestOp.RELEASE, slot=slot)
        client.close()  # without ringing: what was pushed counts
        wait_until(lambda: not control.group()["sessions"], "the session is gone")
        assert control.group()["grants"] == 0

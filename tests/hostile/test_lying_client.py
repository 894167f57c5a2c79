# SPDX-License-Identifier: GPL-2.0-or-later
"""lying_client: provides bytes that are not those of its hash, or changes them meanwhile."""

import multiprocessing
import time

import pytest
from tests.lib import wire
from tests.lib.broker import DEADLINE_SECONDS, Broker, Client, Control, build_directory, page_of
from tests.lib.wire import ReplyOp

WEAK = wire.build_has_weak_hash(build_directory())


@pytest.mark.skipif(WEAK, reason="one in 255 lies passes an 8-bit hash, by design")
def test_wrong_bytes_are_rejected(broker: Broker, control: Control) -> None:
    page, lie = page_of(1), page_of(2)
    with (
        Client(broker.socket_path()).hello("honest") as honest,
        Client(broker.socket_path()).hello("liar") as liar,
    ):
        hash_ = honest.hash(page)
        assert honest.sight(hash_, 1).op == ReplyOp.NEW
        assert liar.sight(hash_, 1).op == ReplyOp.PROVIDE
        assert liar.provide(hash_, 1, lie).op == ReplyOp.NEW
        group = control.group()
        assert (group["rejected_provides"], group["grants"]) == (1, 0)
        match = honest.share(page, 2)
        assert match.op == ReplyOp.MATCH
        assert honest.read_slot(match.slot) == page


def _flip(client: Client, truth: bytes, lie: bytes) -> None:
    while True:
        client.place(lie, 0)
        client.place(truth, 0)


def test_I3_bytes_changed_while_they_are_taken(broker: Broker) -> None:
    """Whatever the slot got, it has the hash that it was stored under, and stays so."""
    with Client(broker.socket_path()).hello("liar") as liar:
        matched = rejected = number = 0
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not (matched and rejected):
            assert time.monotonic() < deadline, f"matched {matched} rejected {rejected}"
            number += 1
            truth, lie = page_of(10_000 + number), page_of(20_000 + number)
            hash_ = liar.hash(truth)
            flipper = multiprocessing.get_context("fork").Process(
                target=_flip, args=(liar, truth, lie), daemon=True
            )
            flipper.start()
            try:
                liar.sight(hash_, 2 * number)
                for _ in range(50):
                    reply = liar.sight(hash_, 2 * number + 1)
                    if reply.op == ReplyOp.PROVIDE:
                        reply = liar.provide(hash_, 2 * number + 1, truth)
                    if reply.op != ReplyOp.MATCH:
                        rejected += 1
                        continue
                    matched += 1
                    assert liar.hash(liar.read_slot(reply.slot)) == hash_
                    break
            finally:
                flipper.kill()
                flipper.join()
            while liar.try_pop():
                pass

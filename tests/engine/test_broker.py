# SPDX-License-Identifier: GPL-2.0-or-later
"""Engines that share through a real broker, and what becomes of them when it dies."""

import json
import subprocess
import sys
import time

from tests.lib.broker import Broker, Client, page_of, wait_until
from tests.lib.memory import PAGE_BYTES, Memory
from tests.lib.native import ROOT
from tests.lib.wire import ReplyOp

from memshare.engine import Engine, EngineError

PAGES = 64

#: Another guest with the same contents. Says when it shares, then waits, verifies and writes on request.
GUEST = """
import json, sys
from memshare.engine import Engine
from tests.lib.memory import Memory
memory = Memory({pages}).fill(lambda page: page // 8 % 4 and 1)
engine = Engine(sys.argv[1], nothing_pinned=True)
engine.register(memory.buffer)
for line in sys.stdin:
    if line == "scan\\n":
        engine.scan_once()
    elif line == "write\\n":
        for page in range(0, {pages}, 2):
            memory.write(page, b"guest", offset=page)
    memory.check()
    print(json.dumps(engine.stats()), flush=True)
"""


class Guest:
    """A process with an engine of its own."""

    def __init__(self, broker: Broker) -> None:
        script = GUEST.format(pages=PAGES)
        self.process = subprocess.Popen(
            [sys.executable, "-c", script, str(broker.socket_path())],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def do(self, what: str) -> dict[str, int]:
        """Ask it to scan, write or only check; its stats, or it has failed."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        stats = json.loads(self.process.stdout.readline())
        assert isinstance(stats, dict)
        return stats

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


def test_I6_I7_guests_outlive_each_other_and_the_broker(broker: Broker) -> None:
    """Two processes share, one writes, one is killed, the broker is killed: every byte is right."""
    memory = Memory(PAGES).fill(lambda page: page // 8 % 4 and 1)
    guest = Guest(broker)
    try:
        with Engine(broker.socket_path(), nothing_pinned=True) as engine:
            engine.register(memory.buffer)
            for _ in range(6):
                engine.scan_once()
                theirs = guest.do("scan")
            ours = engine.stats()
            assert ours["shared_pages"] == theirs["shared_pages"] == PAGES * 3 // 4
            assert ours["zero_pages"] == theirs["zero_pages"] == PAGES // 4
            assert ours["saved_content_bytes"] == (PAGES * 3 // 4 - 0.5) * PAGE_BYTES
            memory.check()
            guest.do("write")
            memory.check()
            guest.do("check")
            guest.kill()
            memory.check()
            control = broker.control()
            # Its grants are gone with it; ours are all that is left.
            wait_until(
                lambda: control.group("default")["grants"] == PAGES * 3 // 4, "grants came back"
            )
            control.close()
            broker.kill()
            memory.check()
            wait_until(lambda: _is_waiting(engine), "the engine notices")
            for page in range(0, PAGES, 3):
                memory.write(page, b"alone", offset=7)
            memory.check()
            engine.detach()
            assert engine.stats()["shared_pages"] == 0
            memory.check()
        memory.check()
    finally:
        guest.kill()


def test_I10_what_a_paused_engine_saves_is_of_now(broker: Broker) -> None:
    """Its part of the one slot is a half, and with one sharer more a third: no pass of its own tells it."""
    memory = Memory(PAGES).fill(lambda page: page // 8 % 4 and 1)
    guests = [Guest(broker), Guest(broker)]
    try:
        with Engine(broker.socket_path(), nothing_pinned=True) as engine:
            engine.register(memory.buffer)
            for _ in range(6):
                engine.scan_once()
                guests[0].do("scan")
            assert engine.stats()["saved_content_bytes"] == (PAGES * 3 // 4 - 0.5) * PAGE_BYTES
            engine.set(scan_rate=0)
            engine.start()
            passes = engine.stats()["passes"]
            for _ in range(6):
                guests[1].do("scan")
            third = (PAGES * 3 // 4) * PAGE_BYTES - round(PAGE_BYTES / 3)
            wait_until(lambda: engine.stats()["saved_content_bytes"] == third, "it is told")
            assert engine.stats()["passes"] == passes
        memory.check()
    finally:
        for guest in guests:
            guest.kill()


def test_a_paused_engine_merges_nothing_that_it_is_told_of(broker: Broker) -> None:
    """Another brings a page that it asked about: it gives the grant back, and shares when it goes on."""
    memory = Memory(1)
    memory.write(0, page_of(1))
    with (
        Engine(broker.socket_path(), nothing_pinned=True) as engine,
        Client(broker.socket_path()).hello("other") as other,
    ):
        engine.register(memory.buffer)
        for _ in range(3):
            engine.scan_once()
        engine.set(scan_rate=0)
        engine.start()
        assert other.share(page_of(1), 1).op == ReplyOp.MATCH
        control = broker.control()
        wait_until(lambda: control.group()["releases"] == 1, "the hint is turned down")
        assert control.group()["grants"] == 1
        control.close()
        assert engine.stats()["windows"] == 0
        engine.set(scan_rate=100_000)
        wait_until(lambda: engine.stats()["shared_pages"] == 1, "it goes on")
        memory.check()


def _is_waiting(engine: Engine) -> bool:
    try:
        engine.scan_once()
    except EngineError:
        return bool(engine.stats()["state"] == "waiting-for-broker")
    time.sleep(0.01)
    return False

# SPDX-License-Identifier: GPL-2.0-or-later
"""Recorded hosts: a header line, then one snapshot a line, all JSON.

    {"memshare_recording": 1}
    {"taken_ns": ..., "host": {...}, "guests": [{"domain": ..., "taken_ns": ..., "stats": {...}}]}

The daemon writes what it saw; nothing that it concluded. So a recording of a bad night can be shown to
another configuration, or to a newer policy.
"""

from collections.abc import Iterable, Iterator

import msgspec

from memshare.errors import UsageError
from memshare.policy import Config, Decision, Snapshot, State, decide

HEADER = b'{"memshare_recording": 1}'


def write(snapshots: Iterable[Snapshot]) -> Iterator[bytes]:
    """Yield the lines of a recording."""
    yield HEADER + b"\n"
    encoder = msgspec.json.Encoder()
    for snapshot in snapshots:
        yield encoder.encode(snapshot) + b"\n"


def read(lines: Iterable[bytes]) -> Iterator[Snapshot]:
    """Yield the snapshots of a recording. Raises UsageError with the number of the line at fault."""
    decoder = msgspec.json.Decoder(Snapshot)
    numbered = enumerate(lines, 1)
    if next(numbered, (0, b""))[1].strip() != HEADER:
        raise UsageError("not a recording of a host: its first line is another")
    last_ns = None
    for number, line in numbered:
        try:
            snapshot = decoder.decode(line)
        except msgspec.MsgspecError as error:
            raise UsageError(f"recording, line {number}: {error}") from error
        if last_ns is not None and snapshot.taken_ns <= last_ns:
            raise UsageError(f"recording, line {number}: taken before the line above")
        last_ns = snapshot.taken_ns
        yield snapshot


def replay(snapshots: Iterable[Snapshot], config: Config) -> Iterator[Decision]:
    """Yield what would have been decided at each look. What was decided then cannot be taken back."""
    state = State()
    for snapshot in snapshots:
        decision = decide(snapshot, state, config)
        state = decision.state
        yield decision

# SPDX-License-Identifier: GPL-2.0-or-later
"""What the daemon keeps in mind: between two decisions, over a reload, and the little that outlives it.

What balloons have taken is on disk, because it has to be given back whoever took it. All else is learned again
within a minute.
"""

from pathlib import Path

import msgspec
import structlog

from memshare.errors import MemshareError
from memshare.policy import State as PolicyState
from memshare.policy.guard import Guard

log = structlog.get_logger()

FILE = "ballooned.json"


class State(msgspec.Struct, kw_only=True):
    """The policy's state, in a place that outlives a loop."""

    policy: PolicyState


def load(state_dir: Path) -> State:
    """Return the state to begin with. What cannot be read is logged, and begun anew."""
    path = state_dir / FILE
    ballooned: dict[str, int] = {}
    try:
        ballooned = msgspec.json.decode(path.read_bytes(), type=dict[str, int])
    except FileNotFoundError:
        pass
    except (OSError, msgspec.DecodeError) as error:
        log.error("state_not_read", file=str(path), reason=str(error))
    return State(policy=PolicyState(guard=Guard(ballooned=ballooned)))


def save(state_dir: Path, state: PolicyState) -> None:
    """Write down what balloons have taken. MemshareError."""
    path = state_dir / FILE
    try:
        new = path.with_suffix(".new")
        new.write_bytes(msgspec.json.encode(state.guard.ballooned))
        new.replace(path)
    except OSError as error:
        raise MemshareError(f"{path}: {(error.strerror or str(error)).lower()}") from error

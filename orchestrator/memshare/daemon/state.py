# SPDX-License-Identifier: GPL-2.0-or-later
"""What the daemon keeps in mind: between two decisions, over a reload, and the little that outlives it.

What balloons have taken is on disk, because it has to be given back whoever took it. All else is learned again
within a minute.
"""

from collections.abc import Mapping
from pathlib import Path

import msgspec
import structlog

from memshare.model import Mode
from memshare.policy import State as PolicyState
from memshare.policy.guard import Guard

log = structlog.get_logger()

FILE = "ballooned.json"


class State(msgspec.Struct, kw_only=True):
    """The policy's state and whose it is, in a place that outlives a loop.

    processes tells one start of a guest from the next, with the source that has it. drained is what guests shared
    before they were drained here, and in which process. saved is what is on disk, None where it is not known.
    """

    policy: PolicyState
    processes: Mapping[str, tuple[str, str]] = msgspec.field(default_factory=dict)
    drained: dict[str, tuple[str, Mode]] = msgspec.field(default_factory=dict)
    saved: Mapping[str, int] | None = None
    problem: str = ""


def load(state_dir: Path) -> State:
    """Return the state to begin with. What cannot be read is logged, and begun anew."""
    path = state_dir / FILE
    ballooned: dict[str, int] = {}
    try:
        ballooned = msgspec.json.decode(path.read_bytes(), type=dict[str, int])
    except FileNotFoundError:
        pass
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        log.error("state_not_read", file=str(path), reason=str(error))
    return State(policy=PolicyState(guard=Guard(ballooned=ballooned)))


def save(state_dir: Path, state: State) -> None:
    """Write down what balloons have taken, if it is not. What cannot be written is logged, and tried again next time.

    A disk that is full is no reason to let the host run out of memory.
    """
    ballooned = state.policy.guard.ballooned
    if ballooned == state.saved:
        return
    path = state_dir / FILE
    try:
        new = path.with_suffix(".new")
        new.write_bytes(msgspec.json.encode(ballooned))
        new.replace(path)
    except OSError as error:
        problem = (error.strerror or str(error)).lower()
        if problem != state.problem:
            log.error("state_not_saved", file=str(path), reason=problem)
        state.problem = problem
    else:
        state.saved, state.problem = ballooned, ""

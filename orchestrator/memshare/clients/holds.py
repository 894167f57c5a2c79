# SPDX-License-Identifier: GPL-2.0-or-later
"""What the operator has stopped with `pause` and `drain`, until `resume`: one small file a guest.

Files, and not the daemon's memory, because a kill switch has to work without the daemon and to outlive it: whoever
stopped a guest does not want a restart to start it again. A hold on all guests is kept apart from those on single ones,
and holds guests that start later too.
"""

from enum import StrEnum
from pathlib import Path
from urllib.parse import quote, unquote

import msgspec

from memshare.errors import MemshareError
from memshare.model import Mode

FOLDER = "holds"
ALL = "all"
PREFIX = "guest-"


class Verb(StrEnum):
    """What was said."""

    PAUSE = "pause"  # nothing new is shared
    DRAIN = "drain"  # nothing is shared


class Hold(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One hold. modes is what each guest shared before a drain, to go back to.

    released names guests that a hold on all holds no more, while others could not be told so.
    """

    verb: Verb
    modes: dict[str, Mode] = msgspec.field(default_factory=dict)
    released: frozenset[str] = frozenset()


class Holds(msgspec.Struct, frozen=True, kw_only=True):
    """All holds of a host at one moment."""

    all: Hold | None = None
    guests: dict[str, Hold] = msgspec.field(default_factory=dict)

    def of(self, domain: str) -> Hold | None:
        """Return what holds a guest; of two the stronger one."""
        candidates = (self.guests.get(domain), self.all)
        both = [hold for hold in candidates if hold is not None and domain not in hold.released]
        return next((hold for hold in both if hold.verb is Verb.DRAIN), both[0] if both else None)


def read_holds(state_dir: Path) -> Holds:
    """Return all holds. One that cannot be read holds what it names: a kill switch fails towards stopping."""
    everything: Hold | None = None
    guests: dict[str, Hold] = {}
    try:
        paths = sorted((state_dir / FOLDER).iterdir())
    except (FileNotFoundError, NotADirectoryError):
        paths = []  # nothing was ever held here
    except OSError:
        return Holds(all=Hold(verb=Verb.PAUSE))
    for path in paths:
        try:
            hold = msgspec.json.decode(path.read_bytes(), type=Hold)
        except FileNotFoundError:
            continue  # resumed meanwhile
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            hold = Hold(verb=Verb.PAUSE)
        if path.name == ALL:
            everything = hold
        elif path.name.startswith(PREFIX):
            guests[unquote(path.name.removeprefix(PREFIX))] = hold
    return Holds(all=everything, guests=guests)


def _path(state_dir: Path, domain: str | None) -> Path:
    return state_dir / FOLDER / (ALL if domain is None else PREFIX + quote(domain, safe=""))


def hold(state_dir: Path, domain: str | None, what: Hold) -> None:
    """Remember a hold; domain None is all guests. MemshareError."""
    path = _path(state_dir, domain)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f".{path.name}")
        new.write_bytes(msgspec.json.encode(what))
        new.replace(path)
    except OSError as error:
        raise MemshareError(f"{path}: {(error.strerror or str(error)).lower()}") from error


def release(state_dir: Path, domain: str | None) -> None:
    """Forget a hold, if there is one. MemshareError."""
    path = _path(state_dir, domain)
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise MemshareError(f"{path}: {(error.strerror or str(error)).lower()}") from error

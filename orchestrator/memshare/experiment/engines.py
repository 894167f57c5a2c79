# SPDX-License-Identifier: GPL-2.0-or-later
"""Which class is behind which name of a plan."""

from pathlib import Path

from memshare.experiment.engine import Engine, Lab, Off
from memshare.experiment.ksm import Ksm, Ksmtuned
from memshare.experiment.plan import EngineKind
from memshare.experiment.sharing import Memshare


def make(kind: EngineKind, lab: Lab) -> Engine:
    """Return the engine; nothing is started."""
    return _class(kind)(lab, kind)


def check(kind: EngineKind, build: Path) -> None:
    """Raise where this host or build lacks what the engine needs."""
    _class(kind).check(kind, build)


def _class(kind: EngineKind) -> type[Engine]:
    if kind is EngineKind.OFF:
        return Off
    if kind is EngineKind.KSMTUNED:
        return Ksmtuned
    return Ksm if kind.is_ksm else Memshare

# SPDX-License-Identifier: GPL-2.0-or-later
"""Which class is behind which name of a plan."""

from memshare.experiment.engine import Engine, Lab, Off
from memshare.experiment.ksm import Ksm, Ksmtuned
from memshare.experiment.plan import EngineKind
from memshare.experiment.sharing import Memshare


def make(kind: EngineKind, lab: Lab) -> Engine:
    """Return the engine; nothing is started."""
    if kind is EngineKind.OFF:
        return Off(lab)
    if kind is EngineKind.KSMTUNED:
        return Ksmtuned(lab, kind)
    return Ksm(lab, kind) if kind.is_ksm else Memshare(lab, kind)

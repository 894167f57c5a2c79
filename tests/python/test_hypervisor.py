# SPDX-License-Identifier: GPL-2.0-or-later
"""A libvirt that misbehaves: what it does to one call costs that call only.

tests/integration/test_libvirt.py has a real one.
"""

from typing import Any

import pytest

from memshare.clients.libvirt import LibvirtMonitor, Running
from memshare.errors import MemshareError


def running(name: str) -> Running:
    return Running(uuid=name, name=name, id=1, persistent=True, xml="<domain/>")


class Answering:
    """Brings commands to a QEMU that always says the same."""

    def __init__(self, said: str) -> None:
        self.said = said

    async def monitor_command(self, *_: Any) -> str:
        return self.said


@pytest.mark.parametrize("said", ['{"return": ' + "[" * 100_000 + "]" * 100_000 + "}", "[]", "{"])
async def test_a_monitor_that_talks_nonsense_is_one_error_of_ours(said: str) -> None:
    monitor = LibvirtMonitor(Answering(said), running("a"))  # type: ignore[arg-type]
    with pytest.raises(MemshareError, match="a: qom-get: no JSON object came back"):
        await monitor.stats()

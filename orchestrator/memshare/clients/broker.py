# SPDX-License-Identifier: GPL-2.0-or-later
"""The broker, by its control socket."""

from functools import partial
from pathlib import Path

import msgspec

from memshare.clients import control
from memshare.errors import MemshareError
from memshare.model import Broker, GroupAudit

ask = partial(control.ask, peer="the broker", hint="is memshared running?")


async def audit_group(socket: Path, group: str) -> GroupAudit:
    """Have the broker look whether all that it counts of a group is true."""
    answer = await ask(socket, "audit", group=group)
    try:
        return msgspec.convert(answer, GroupAudit)
    except msgspec.ValidationError as error:
        raise MemshareError(f"{socket}: audit: {error}") from error


async def read_broker(socket: Path) -> Broker:
    """Return the broker's figures; UnreachableError when it does not answer."""
    answer = await ask(socket, "status")
    try:
        return msgspec.convert(answer, Broker)
    except msgspec.ValidationError as error:
        raise MemshareError(f"{socket}: status: {error}") from error

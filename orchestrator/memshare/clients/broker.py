# SPDX-License-Identifier: GPL-2.0-or-later
"""The broker, by its control socket."""

from functools import partial
from pathlib import Path

import msgspec

from memshare.clients import control
from memshare.errors import MemshareError
from memshare.model import Broker

ask = partial(control.ask, peer="the broker", hint="is memshared running?")


async def read_broker(socket: Path) -> Broker:
    """Return the broker's figures; UnreachableError when it does not answer."""
    answer = await ask(socket, "status")
    try:
        return msgspec.convert(answer, Broker)
    except msgspec.ValidationError as error:
        raise MemshareError(f"{socket}: status: {error}") from error

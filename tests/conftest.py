# SPDX-License-Identifier: GPL-2.0-or-later
"""A broker that serves one group to whoever can open its socket."""

from collections.abc import Iterator

import pytest
from tests.lib.broker import Broker, Control


@pytest.fixture
def broker() -> Iterator[Broker]:
    """Serves group default, by mode, to every user."""
    with Broker("--group", "default", "--allow-by-mode", "--socket-mode", "0666") as running:
        yield running


@pytest.fixture
def control(broker: Broker) -> Iterator[Control]:
    """A control connection to that broker."""
    connection = broker.control()
    yield connection
    connection.close()

# SPDX-License-Identifier: GPL-2.0-or-later
"""What all tests begin with: a broker that serves one group, and no bars of time."""

from collections.abc import Iterator

import pytest
from hypothesis import settings
from tests.lib.broker import Broker, Control

# How long an example takes says how busy the machine is.
settings.register_profile("memshare", deadline=None)
settings.load_profile("memshare")


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

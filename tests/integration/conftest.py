# SPDX-License-Identifier: GPL-2.0-or-later
"""What several files of tests with guests begin with."""

from pathlib import Path

import pytest

from memshare.bench.fleet import build_image
from memshare.bench.rig import SOURCE


@pytest.fixture(scope="session")
def image() -> Path:
    """The guests' image; built when it is not there."""
    return build_image([str(SOURCE / "guests" / "linux" / "build.sh")])

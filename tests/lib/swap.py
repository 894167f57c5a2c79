# SPDX-License-Identifier: GPL-2.0-or-later
"""A swap file of a test's own; needs root."""

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

MADV_PAGEOUT = 21
ROOT = Path(__file__).resolve().parents[2]


@contextlib.contextmanager
def swap_file(length_bytes: int) -> Iterator[None]:
    """Swap on; off and gone again in every case."""
    # Beside the sources: a temporary directory may be in memory, where nothing can be swapped to.
    with (
        tempfile.NamedTemporaryFile(prefix=".memshare-swap-", dir=ROOT) as file,
        contextlib.ExitStack() as undo,
    ):
        file.write(bytes(length_bytes))
        file.flush()
        subprocess.run(["mkswap", "-q", file.name], check=True, capture_output=True)
        undo.callback(subprocess.run, ["swapoff", file.name], check=False)
        subprocess.run(["swapon", file.name], check=True, capture_output=True)
        yield

# SPDX-License-Identifier: GPL-2.0-or-later
"""How plots look, and that the same figures give the same file, byte for byte."""

from pathlib import Path
from typing import Any, TextIO

from memshare.errors import HostError


def pyplot(salt: str = "memshare", **parameters: Any) -> Any:
    """Import matplotlib late, since it takes a second, and set it up. Elements are numbered from salt, not by chance."""
    try:
        import matplotlib
    except ImportError as error:
        raise HostError(
            f"{error.name} is not installed", "pip install 'memshare[bench]'"
        ) from error

    matplotlib.use("svg")
    matplotlib.rcdefaults()
    settings: Any = {"svg.hashsalt": salt, "svg.fonttype": "none", **parameters}
    matplotlib.rcParams.update(settings)
    from matplotlib import pyplot

    return pyplot


def bare(axis: Any) -> None:
    """Two lines instead of a box."""
    axis.spines[["top", "right"]].set_visible(False)


def save(figure: Any, output: Path | TextIO) -> None:
    """Write the picture; no date in it, so that it changes with the figures only."""
    figure.savefig(output, format="svg", metadata={"Date": None, "Creator": None})

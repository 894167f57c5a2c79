# SPDX-License-Identifier: GPL-2.0-or-later
"""Options that several verbs have."""

import re
from pathlib import Path
from typing import Any

import click

from memshare import paths
from memshare.render import Format

output = click.option(
    "-o",
    "--output",
    "form",
    type=click.Choice([form.value for form in Format]),
    default=Format.TABLE.value,
    show_default=True,
    help="What to print.",
)

broker = click.option(
    "--broker",
    type=click.Path(path_type=Path),
    envvar="MEMSHARE_BROKER",
    default=paths.CONTROL_SOCKET,
    show_default=True,
    help="Control socket of memshared.",
)

config = click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path),
    envvar="MEMSHARE_CONFIG",
    default=paths.CONFIG,
    show_default=True,
    help="The daemon's configuration; conf.d/*.toml beside it is read too.",
)


class Size(click.ParamType[int]):
    """Bytes, with a binary suffix or without: `512M`, `4G`, `1.5GiB`."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return bytes."""
        match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([KMGT]?)(?:i?B)?", str(value), re.IGNORECASE)
        if match is None:
            self.fail(f"{value!r} is no size such as 512M or 4G", param, ctx)
        return int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " "))

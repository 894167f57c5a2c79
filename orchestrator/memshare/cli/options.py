# SPDX-License-Identifier: GPL-2.0-or-later
"""Options that several verbs have."""

import click

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

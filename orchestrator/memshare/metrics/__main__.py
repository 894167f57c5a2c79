# SPDX-License-Identifier: GPL-2.0-or-later
"""`python -m memshare.metrics document|dashboard`: print a file that is made from the table."""

import click

from memshare.metrics.dashboard import dashboard
from memshare.metrics.document import document

FILES = {"document": document, "dashboard": dashboard}


@click.command()
@click.argument("file", type=click.Choice(list(FILES)))
def main(file: str) -> None:
    """Print docs/metrics.md or packaging/grafana/memshare.json."""
    click.echo(FILES[file](), nl=False)


main()

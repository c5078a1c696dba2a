"""``fdfs link``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from fdfsfuse.cli.options import ChosenCluster, json_option, on_cluster
from fdfsfuse.cli.output import print_json

if TYPE_CHECKING:
    from fdfsfuse.client.client import Client


@click.command()
@click.argument("file_id", metavar="ID")
@click.option(
    "--extension",
    "-e",
    metavar="EXT",
    help="Extension of the new id, up to 6 characters.  [default: that of ID]",
)
@json_option
@on_cluster
def link(file_id: str, extension: str | None, as_json: bool, cluster: ChosenCluster) -> None:
    """Give the file ID a further id, without copying its content, and print that.

    The new id has metadata of its own. Deleting it keeps the file; deleting the file leaves it
    pointing to nothing.

    With --json prints an object with the keys target_id and file_id.

    \b
    Example:
      fdfs link group1/M00/00/00/fwAAC2sC71qAc1b5AAAACw1KEYU551.txt
    """

    async def use(client: Client) -> str:
        return await client.link(file_id, extension=extension)

    new_id = cluster.run(use)
    if as_json:
        print_json({"target_id": file_id, "file_id": new_id})
    else:
        click.echo(new_id)

"""``fdfs truncate``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from fdfsfuse.cli.options import ChosenCluster, json_option, on_cluster
from fdfsfuse.cli.output import print_json

if TYPE_CHECKING:
    from fdfsfuse.client.client import Client


@click.command()
@click.argument("file_id", metavar="ID")
@click.argument("size", type=click.IntRange(min=0))
@json_option
@on_cluster
def truncate(file_id: str, size: int, as_json: bool, cluster: ChosenCluster) -> None:
    """Set the size of the appender ID to SIZE bytes; it grows with zero bytes.

    With --json prints an object with the keys file_id and size.

    \b
    Example:
      fdfs truncate group1/M00/00/00/fwAAC2sC71yEb4YYAAAAACWd5eY757.log 0
    """

    async def use(client: Client) -> None:
        await client.truncate(file_id, size)

    cluster.run(use)
    if as_json:
        print_json({"file_id": file_id, "size": size})

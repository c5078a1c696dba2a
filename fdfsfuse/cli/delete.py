"""``fdfs delete``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from fdfsfuse.cli.options import ChosenCluster, json_option, on_cluster
from fdfsfuse.cli.output import print_json

if TYPE_CHECKING:
    from fdfsfuse.client.client import Client


@click.command()
@click.argument("file_ids", metavar="ID...", nargs=-1, required=True)
@json_option
@on_cluster
def delete(
    file_ids: tuple[str, ...],
    as_json: bool,
    cluster: ChosenCluster,
) -> None:
    """Delete the files ID with their metadata, and their names on mounts.

    The first failure ends the command. With --json each line is an object with the key file_id,
    printed when that file is gone.

    \b
    Example:
      fdfs delete group1/M00/00/00/fwAAC2sC71qAc1b5AAAACw1KEYU551.txt
    """

    async def use(client: Client) -> None:
        for file_id in file_ids:
            await client.delete(file_id)
            if as_json:
                print_json({"file_id": file_id})

    cluster.run(use)

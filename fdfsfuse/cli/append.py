"""``fdfs append``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from fdfsfuse.cli.options import ChosenCluster, json_option, on_cluster, standard_input
from fdfsfuse.cli.output import print_json, progress

if TYPE_CHECKING:
    from fdfsfuse.client.client import Client


@click.command()
@click.argument("file_id", metavar="ID")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@json_option
@on_cluster
def append(
    file_id: str,
    file: str,
    as_json: bool,
    cluster: ChosenCluster,
) -> None:
    """Append FILE, or the standard input (-), to the appender ID.

    Only files made with "fdfs upload --appender" can grow. With --json prints an object with the
    keys file_id and size: that of the whole file now.

    \b
    Example:
      fdfs append group1/M00/00/00/fwAAC2sC71yEb4YYAAAAACWd5eY757.log today.log
    """

    async def use(client: Client) -> int:
        size = None if file == "-" else os.stat(file).st_size
        with progress(os.path.basename(file), size) as advance:
            source = standard_input() if file == "-" else file
            await client.append(file_id, source, progress=advance)
        return (await client.info(file_id, flags=1)).size if as_json else 0

    size = cluster.run(use)
    if as_json:
        print_json({"file_id": file_id, "size": size})

"""``fdfs regenerate``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from fdfsfuse.cli.options import ChosenCluster, json_option, on_cluster
from fdfsfuse.cli.output import print_json

if TYPE_CHECKING:
    from fdfsfuse.client.client import Client


@click.command()
@click.argument("file_id", metavar="ID")
@json_option
@on_cluster
def regenerate(file_id: str, as_json: bool, cluster: ChosenCluster) -> None:
    """Make the appender ID a normal file, which never changes again, and print its new id.

    The new id tells size and CRC-32, so downloads can be verified, and every server of the volume
    can serve the file. The old id is gone at once, and so is the metadata.

    With --json prints an object with the keys old_id and file_id.

    \b
    Example:
      fdfs regenerate group1/M00/00/00/fwAAC2sC71yEb4YYAAAAACWd5eY757.log
    """

    async def use(client: Client) -> str:
        return await client.regenerate(file_id)

    new_id = cluster.run(use)
    if as_json:
        print_json({"old_id": file_id, "file_id": new_id})
    else:
        click.echo(new_id)

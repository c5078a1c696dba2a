"""``fdfs exists``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from fdfsfuse.cli.failure import EXIT_NOT_FOUND
from fdfsfuse.cli.options import ChosenCluster, json_option, on_cluster
from fdfsfuse.cli.output import print_json

if TYPE_CHECKING:
    from fdfsfuse.client.client import Client


@click.command()
@click.argument("file_ids", metavar="ID...", nargs=-1, required=True)
@click.option("--quiet", "-q", is_flag=True, help="Print nothing: the exit code tells.")
@json_option
@on_cluster
def exists(file_ids: tuple[str, ...], quiet: bool, as_json: bool, cluster: ChosenCluster) -> int:
    """Tell whether the files ID exist.

    Prints "ID: exists" or "ID: missing" for each. The exit code is 0 when all of them exist and 3
    when one does not. With --json each line is an object with the keys file_id and exists.

    \b
    Example:
      fdfs exists -q group1/M00/00/00/fwAAC2sC71qAc1b5AAAACw1KEYU551.txt && echo yes
    """

    async def use(client: Client) -> bool:
        complete = True
        for file_id in file_ids:
            there = await client.exists(file_id)
            complete = complete and there
            if as_json:
                print_json({"file_id": file_id, "exists": there})
            elif not quiet:
                click.echo(f"{file_id}: {'exists' if there else 'missing'}")
        return complete

    return 0 if cluster.run(use) else EXIT_NOT_FOUND

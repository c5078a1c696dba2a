"""``fdfs slave``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from fdfsfuse.cli.options import ChosenCluster, json_option, on_cluster, standard_input
from fdfsfuse.cli.output import print_json, progress
from fdfsfuse.cli.pairs import parse_pairs

if TYPE_CHECKING:
    from fdfsfuse.client.client import Client


@click.command()
@click.argument("master_id", metavar="MASTER_ID")
@click.argument("prefix")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option(
    "--extension",
    "-e",
    metavar="EXT",
    help="Extension of the id, up to 6 characters.  [default: that of FILE, or of the master]",
)
@click.option("--meta", "-m", "meta", metavar="NAME=VALUE", multiple=True, help="Metadata.")
@json_option
@on_cluster
def slave(
    master_id: str,
    prefix: str,
    file: str,
    extension: str | None,
    meta: tuple[str, ...],
    as_json: bool,
    cluster: ChosenCluster,
) -> None:
    """Store FILE as a slave of the file MASTER_ID and print its id.

    Its id is that of the master with PREFIX behind it, so whoever knows the one knows the other: a
    thumbnail of ...551.jpg with the prefix _small is ...551_small.jpg. Take a prefix of at least 6
    characters, or 5 with an extension: servers take slaves with shorter ids for normal files.
    Deleting the master keeps its slaves.

    With --json prints an object with the keys master_id, file, file_id and size.

    \b
    Example:
      fdfs slave group1/M00/00/00/fwAAC2sC71qAc1b5AAAACw1KEYU551.jpg _120x120 small.jpg
    """
    pairs = parse_pairs(meta)

    async def use(client: Client) -> str:
        size = None if file == "-" else os.stat(file).st_size
        with progress(os.path.basename(file), size) as advance:
            return await client.upload_slave(
                master_id,
                prefix,
                standard_input() if file == "-" else file,
                extension=extension,
                metadata=pairs,
                progress=advance,
            )

    file_id = cluster.run(use)
    if as_json:
        size = None if file == "-" else os.stat(file).st_size
        print_json({"master_id": master_id, "file": file, "file_id": file_id, "size": size})
    else:
        click.echo(file_id)

"""``fdfs upload``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from fdfsfuse.cli.options import cluster_options, json_option, standard_input, with_client
from fdfsfuse.cli.output import print_json, progress
from fdfsfuse.cli.pairs import parse_pairs

if TYPE_CHECKING:
    from fdfsfuse.client.client import Client


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, allow_dash=True))
@click.option("--group", "-g", metavar="VOLUME", help="Store in this volume.")
@click.option(
    "--extension",
    "-e",
    metavar="EXT",
    help="Extension of the id, up to 6 characters.  [default: that of FILE]",
)
@click.option("--appender", is_flag=True, help="Make files that can be appended to later.")
@click.option("--meta", "-m", "meta", metavar="NAME=VALUE", multiple=True, help="Metadata.")
@json_option
@cluster_options
def upload(
    files: tuple[str, ...],
    group: str | None,
    extension: str | None,
    appender: bool,
    meta: tuple[str, ...],
    as_json: bool,
    trackers: tuple[str, ...],
    config: str | None,
    timeout_s: float,
) -> None:
    """Store FILEs and print the id of each; - is the standard input.

    The first failure ends the command; ids that were printed are stored. With --json each line
    is an object with the keys file, file_id and size.

    \b
    Examples:
      fdfs upload photo.jpg
      fdfs upload --group group2 --meta width=1024 --meta height=768 photo.jpg
      mysqldump shop | fdfs upload - --extension sql
    """
    pairs = parse_pairs(meta)

    async def use(client: Client) -> None:
        for name in files:
            size = None if name == "-" else os.stat(name).st_size
            with progress(os.path.basename(name), size) as advance:
                file_id = await client.upload(
                    standard_input() if name == "-" else name,
                    extension=extension,
                    group=group,
                    appender=appender,
                    metadata=pairs,
                    progress=advance,
                )
            if as_json:
                print_json({"file": name, "file_id": file_id, "size": size})
            else:
                click.echo(file_id)

    with_client(use, trackers, config, timeout_s)

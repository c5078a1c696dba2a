"""``fdfs meta get``, ``set`` and ``merge``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from fdfsfuse.cli.failure import NotFound
from fdfsfuse.cli.options import ChosenCluster, json_option, on_cluster
from fdfsfuse.cli.output import print_json
from fdfsfuse.cli.pairs import parse_pairs
from fdfsfuse.errors import UsageError

if TYPE_CHECKING:
    from fdfsfuse.client.client import Client


@click.group()
def meta() -> None:
    """Read and change the metadata of files.

    On a mount the metadata NAME is the extended attribute user.NAME.

    \b
    Examples:
      fdfs meta get group1/M00/00/00/fwAAC2sC71qAc1b5AAAACw1KEYU551.txt
      fdfs meta set group1/M00/00/00/fwAAC2sC71qAc1b5AAAACw1KEYU551.txt width=1024 height=768
    """


@meta.command("get")
@click.argument("file_id", metavar="ID")
@click.argument("name", metavar="[NAME]", required=False)
@json_option
@on_cluster
def get(
    file_id: str,
    name: str | None,
    as_json: bool,
    cluster: ChosenCluster,
) -> None:
    """Print the metadata of the file ID.

    Each line is NAME=VALUE, sorted by name; with NAME, only its value is printed. With --json
    prints one object of names and values. The exit code is 3 when the file does not exist or has
    no NAME.

    \b
    Examples:
      fdfs meta get group1/M00/00/00/fwAAC2sC71qAc1b5AAAACw1KEYU551.txt
      fdfs meta get group1/M00/00/00/fwAAC2sC71qAc1b5AAAACw1KEYU551.txt width
    """

    async def use(client: Client) -> dict[str, str]:
        return await client.get_metadata(file_id)

    pairs = cluster.run(use)
    if name is not None:
        if name not in pairs:
            raise NotFound(f"{file_id} has no metadata {name!r}")
        if not as_json:
            click.echo(_raw(pairs[name]))
            return
        pairs = {name: pairs[name]}
    if as_json:
        print_json(pairs)
        return
    for key in sorted(pairs):
        click.echo(_raw(f"{key}={pairs[key]}"))


@meta.command("set")
@click.argument("file_id", metavar="ID")
@click.argument("pairs", metavar="NAME=VALUE...", nargs=-1)
@click.option("--replace", is_flag=True, help="Drop all other metadata of the file.")
@on_cluster
def set_(
    file_id: str,
    pairs: tuple[str, ...],
    replace: bool,
    cluster: ChosenCluster,
) -> None:
    """Set metadata of the file ID.

    Other names keep their values, unless --replace is given; with that and no NAME=VALUE the file
    loses all its metadata.

    \b
    Example:
      fdfs meta set group1/M00/00/00/fwAAC2sC71qAc1b5AAAACw1KEYU551.txt width=1024 height=768
    """
    if not pairs and not replace:
        raise UsageError("no NAME=VALUE was given")
    _store(cluster, file_id, pairs, merge=not replace)


@meta.command("merge")
@click.argument("file_id", metavar="ID")
@click.argument("pairs", metavar="NAME=VALUE...", nargs=-1, required=True)
@on_cluster
def merge(file_id: str, pairs: tuple[str, ...], cluster: ChosenCluster) -> None:
    """The same as "meta set" without --replace.

    \b
    Example:
      fdfs meta merge group1/M00/00/00/fwAAC2sC71qAc1b5AAAACw1KEYU551.txt title=sea
    """
    _store(cluster, file_id, pairs, merge=True)


def _store(cluster: ChosenCluster, file_id: str, pairs: tuple[str, ...], *, merge: bool) -> None:
    values = parse_pairs(pairs)

    async def use(client: Client) -> None:
        await client.set_metadata(file_id, values, merge=merge)

    cluster.run(use)


def _raw(text: str) -> bytes:
    """The bytes as they are stored, which need not be UTF-8."""
    return text.encode("utf-8", "surrogateescape")

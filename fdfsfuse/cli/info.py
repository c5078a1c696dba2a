"""``fdfs info``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from fdfsfuse.cli.options import cluster_options, json_option, with_client
from fdfsfuse.cli.output import print_json, size_text, when

if TYPE_CHECKING:
    from fdfsfuse.client.client import Client
    from fdfsfuse.client.plans.reading import FileDetails


@click.command()
@click.argument("file_ids", metavar="ID...", nargs=-1, required=True)
@json_option
@cluster_options
def info(
    file_ids: tuple[str, ...],
    as_json: bool,
    trackers: tuple[str, ...],
    config: str | None,
    timeout_s: float,
) -> None:
    """Show what the cluster knows of the files ID.

    The exit code is 3 when one does not exist. With --json each line is an object with the keys
    file_id, kind (normal, appender, slave), size, created (Unix seconds), crc32 (8 hex digits) and
    source (address or id of the storage that took the upload).

    \b
    Example:
      fdfs info group1/M00/00/00/fwAAC2sC71qAc1b5AAAACw1KEYU551.txt
    """

    async def use(client: Client) -> None:
        for number, file_id in enumerate(file_ids):
            details = await client.info(file_id)
            if as_json:
                print_json(_as_data(details))
            else:
                if number:
                    click.echo()
                _print(details)

    with_client(use, trackers, config, timeout_s)


def _as_data(details: FileDetails) -> dict[str, object]:
    return {
        "file_id": details.file_id,
        "kind": details.kind.name.lower(),
        "size": details.size,
        "created": details.created,
        "crc32": f"{details.crc32:08x}",
        "source": details.source,
    }


def _print(details: FileDetails) -> None:
    exact = f" ({details.size} bytes)" if details.size >= 1024 else ""
    for label, text in (
        ("id", details.file_id),
        ("kind", details.kind.name.lower()),
        ("size", size_text(details.size) + exact),
        ("created", when(details.created)),
        ("crc32", f"{details.crc32:08x}"),
        ("source", details.source or "unknown"),
    ):
        click.echo(f"{label + ':':9}{text}")

"""``fdfs info``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from fdfsfuse.cli.options import (
    ChosenCluster,
    NoTracker,
    json_option,
    on_cluster,
    run_with,
)
from fdfsfuse.cli.output import print_json, size_text, when
from fdfsfuse.errors import ProtocolError, UsageError
from fdfsfuse.proto.fileid import FileKind, decode_name, split_file_id

if TYPE_CHECKING:
    from fdfsfuse.client.client import Client
    from fdfsfuse.client.plans.reading import FileDetails


@click.command()
@click.argument("file_ids", metavar="ID...", nargs=-1, required=True)
@click.option("--local", is_flag=True, help="Tell what the ids say, and ask no server.")
@json_option
@on_cluster
def info(file_ids: tuple[str, ...], local: bool, as_json: bool, cluster: ChosenCluster) -> None:
    """Show what the cluster knows of the files ID.

    The exit code is 3 when one does not exist. The id of a normal file tells everything but that:
    with --local, or when no tracker is known, no server is asked. Of appenders and slaves only the
    cluster knows size and CRC-32. "fdfs decode" explains the fields of an id.

    With --json each line is an object with the keys file_id, kind (normal, appender, slave), size,
    created (Unix seconds), crc32 (8 hex digits) and source (address or id of the storage that took
    the upload).

    \b
    Example:
      fdfs info group1/M00/00/00/fwAAC2sC71qAc1b5AAAACw1KEYU551.txt
    """

    def show(number: int, details: FileDetails) -> None:
        if as_json:
            print_json(_as_data(details))
            return
        if number:
            click.echo()
        _print(details)

    async def use(client: Client) -> None:
        for number, file_id in enumerate(file_ids):
            show(number, await client.info(file_id))

    if not local:
        try:
            settings = cluster.settings()
        except NoTracker as exc:
            if not all(_tells_all(file_id) for file_id in file_ids):
                raise
            click.echo(f"fdfs: {exc}; nobody was asked whether the files exist", err=True)
        else:
            run_with(settings, use)
            return
    for number, file_id in enumerate(file_ids):
        show(number, _decoded(file_id))


def _tells_all(file_id: str) -> bool:
    try:
        _decoded(file_id)
    except UsageError:
        return False
    return True


def _decoded(file_id: str) -> FileDetails:
    """What the id of a normal file tells. Raises UsageError for others."""
    from fdfsfuse.client.plans.reading import FileDetails

    _, name = split_file_id(file_id)
    try:
        found = decode_name(name)
    except ProtocolError as exc:
        raise UsageError(f"{file_id!r} is no file id: {exc}") from exc
    if found.kind is not FileKind.NORMAL:
        kind = found.kind.name.lower()
        raise UsageError(f"{file_id} is of a file of the kind {kind}: only the cluster knows it")
    return FileDetails(file_id, found.kind, found.size, found.timestamp, found.crc32, found.source)


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

"""``fdfs upload``."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from fdfsfuse.cli.options import (
    ChosenCluster,
    group_option,
    json_option,
    on_cluster,
    standard_input,
)
from fdfsfuse.cli.output import print_json, progress
from fdfsfuse.cli.pairs import parse_pairs
from fdfsfuse.errors import ProtocolError

if TYPE_CHECKING:
    from fdfsfuse.client.client import Client

_STANDARD_INPUT = "-"


class Item(NamedTuple):
    """A file to upload; ``size`` None: not known before it has been read."""

    path: str
    size: int | None


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, allow_dash=True))
@group_option
@click.option(
    "--extension",
    "-e",
    metavar="EXT",
    help="Extension of the ids, up to 6 characters.  [default: that of each file]",
)
@click.option("--appender", is_flag=True, help="Make files that can be appended to later.")
@click.option(
    "--replicas",
    metavar="N",
    type=click.IntRange(1, 32),
    default=1,
    help="Wait until N servers have each file.  [default: 1, the others get it soon]",
)
@click.option("--meta", "-m", "meta", metavar="NAME=VALUE", multiple=True, help="Metadata.")
@click.option(
    "--jobs",
    "-j",
    type=click.IntRange(1, 64),
    default=4,
    show_default=True,
    help="Files under way at the same time.",
)
@click.option(
    "--manifest",
    metavar="FILE",
    type=click.Path(dir_okay=False),
    help="Write which file got which id to FILE, as JSON.",
)
@json_option
@on_cluster
def upload(
    files: tuple[str, ...],
    group: str | None,
    extension: str | None,
    appender: bool,
    replicas: int,
    meta: tuple[str, ...],
    jobs: int,
    manifest: str | None,
    as_json: bool,
    cluster: ChosenCluster,
) -> None:
    """Store FILEs and print the id of each; - is the standard input.

    Of a directory all files below it are stored, but no links, pipes or devices; each line then
    has the id and the file's path. The ids come in the order of the files.

    The first failure ends the command; ids that were printed are stored, and everything that is
    stored is printed. With --json each line is an object with the keys file, file_id and size.
    The manifest is an object with the key files: a list of objects with file, file_id, size and
    crc32 (of what its id tells; null for appenders). It is written at the end, also after a
    failure.

    \b
    Examples:
      fdfs upload photo.jpg
      fdfs upload --group group2 --meta width=1024 --meta height=768 photo.jpg
      fdfs upload --replicas 2 contract.pdf
      fdfs upload --jobs 16 --manifest ids.json ~/Pictures
      mysqldump shop | fdfs upload - --extension sql
    """
    pairs = parse_pairs(meta)
    items = list(_collect(files))
    with_paths = any(os.path.isdir(name) for name in files)
    stored: list[dict[str, Any]] = []

    def show(item: Item, file_id: str, size: int) -> None:
        stored.append(
            {"file": item.path, "file_id": file_id, "size": size, "crc32": _crc32_of(file_id)}
        )
        if as_json:
            print_json({"file": item.path, "file_id": file_id, "size": size})
        else:
            click.echo(_line(file_id, item.path) if with_paths else file_id)

    async def use(client: Client) -> None:
        async def store(item: Item, advance: Callable[[int], None]) -> str:
            return await client.upload(
                standard_input() if item.path == _STANDARD_INPUT else item.path,
                extension=extension,
                group=group,
                appender=appender,
                metadata=pairs,
                replicas=replicas,
                progress=advance,
            )

        await _upload_all(items, jobs, store, show)

    try:
        cluster.run(use)
    finally:
        if manifest is not None:
            _write_manifest(manifest, stored)


def _collect(names: Sequence[str]) -> Iterator[Item]:
    """The files that *names* stand for, in their order, those of directories sorted."""
    for name in names:
        if name == _STANDARD_INPUT:
            yield Item(name, None)
        elif os.path.isdir(name):
            for directory, subdirectories, found in os.walk(name, onerror=_raise):
                subdirectories.sort()
                for base in sorted(found):
                    path = os.path.join(directory, base)
                    status = os.lstat(path)
                    if stat.S_ISREG(status.st_mode):
                        yield Item(path, status.st_size)
                    else:
                        click.echo(f"skipped {path}: not a regular file", err=True)
        else:
            status = os.stat(name)
            yield Item(name, status.st_size if stat.S_ISREG(status.st_mode) else None)


def _raise(exc: OSError) -> None:
    raise exc


async def _upload_all(
    items: Sequence[Item],
    jobs: int,
    store: Callable[[Item, Callable[[int], None]], Awaitable[str]],
    show: Callable[[Item, str, int], None],
) -> None:
    """Upload *items*, several at a time, and *show* each in its turn.

    After a failure no further one is begun; those under way are finished, and shown.
    """
    import trio

    sizes = [item.size for item in items]
    total = None if None in sizes else sum(size or 0 for size in sizes)
    what = os.path.basename(items[0].path) if len(items) == 1 else f"{len(items)} files"
    waiting: dict[int, tuple[str, int]] = {}
    failures: list[Exception] = []
    numbers = iter(range(len(items)))
    shown = 0

    with progress(what, total) as advance:

        async def work() -> None:
            nonlocal shown
            for number in numbers:
                if failures:
                    return
                sent = 0

                def count(size: int) -> None:
                    nonlocal sent
                    sent += size
                    if advance is not None:
                        advance(size)

                try:
                    file_id = await store(items[number], count)
                except Exception as exc:
                    failures.append(exc)
                    return
                size = items[number].size
                waiting[number] = file_id, sent if size is None else size
                while shown in waiting:
                    show(items[shown], *waiting.pop(shown))
                    shown += 1

        try:
            async with trio.open_nursery() as nursery:
                for _ in range(min(jobs, len(items))):
                    nursery.start_soon(work)
        finally:
            for number in sorted(waiting):
                show(items[number], *waiting[number])
    if failures:
        raise failures[0]


def _line(file_id: str, path: str) -> bytes:
    return file_id.encode("ascii") + b"  " + os.fsencode(path)


def _crc32_of(file_id: str) -> str | None:
    from fdfsfuse.proto.fileid import FileKind, decode_name, split_file_id

    try:
        info = decode_name(split_file_id(file_id)[1])
    except ProtocolError:
        return None
    return f"{info.crc32:08x}" if info.kind is FileKind.NORMAL else None


def _write_manifest(path: str, stored: list[dict[str, Any]]) -> None:
    """Replace *path* as a whole."""
    temporary = f"{path}.new"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump({"files": stored}, file, indent=1)
        file.write("\n")
    os.replace(temporary, path)

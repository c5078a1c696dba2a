"""``fdfs download``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, BinaryIO

import click

from fdfsfuse.cli.options import ChosenCluster, json_option, on_cluster, run_with, within
from fdfsfuse.cli.output import print_json, progress
from fdfsfuse.errors import UsageError

if TYPE_CHECKING:
    from fdfsfuse.client.client import Client, DownloadStream


@click.command()
@click.argument("file_id", metavar="ID")
@click.argument("target", metavar="[FILE]", required=False, type=click.Path(allow_dash=True))
@click.option("--offset", type=click.IntRange(min=0), default=0, help="Start at this byte.")
@click.option(
    "--count", type=click.IntRange(min=1), help="Fetch so many bytes.  [default: to the end]"
)
@click.option("--verify", is_flag=True, help="Check size and CRC-32 of a whole file.")
@click.option("--resume", is_flag=True, help="Go on where this download broke off before.")
@json_option
@on_cluster
def download(
    file_id: str,
    target: str | None,
    offset: int,
    count: int | None,
    verify: bool,
    resume: bool,
    as_json: bool,
    cluster: ChosenCluster,
) -> None:
    """Fetch the file ID into FILE, into a directory, or to the standard output (-).

    Without FILE it goes into the current directory, under the last part of its id. FILE appears
    when it is complete: a download that breaks off leaves nothing, and keeps an older FILE.
    With --json prints an object with the keys file_id, file and size.

    With --verify the content is compared with the size and CRC-32 that the id tells, for appenders
    and slaves with those that a storage computes; FILE appears only when they agree. With
    --resume what a broken download has fetched is kept beside FILE, and the next --resume goes on
    from there (not for appenders and slaves, which may have changed).

    \b
    Examples:
      fdfs download group1/M00/00/00/fwAAC2sC71qAc1b5AAAACw1KEYU551.txt hello.txt
      fdfs download group1/M00/00/00/fwAAC2sC71qAc1b5AAAACw1KEYU551.txt - | less
      fdfs download --offset 1000000 --count 512 group1/M00/... part.bin
    """
    if as_json and target == "-":
        raise UsageError("--json and - both want the standard output")
    path = _target_path(file_id, target)

    to_file = path != "-" and _is_replaceable(path)
    settings = cluster.settings()

    async def use(client: Client) -> int:
        total = count
        if total is None and sys.stderr.isatty():
            total = max(0, (await client.info(file_id)).size - offset)
        with progress(file_id.rpartition("/")[2], total) as advance:
            if to_file:
                return await client.download_to(
                    file_id,
                    path,
                    offset,
                    count,
                    verify=verify,
                    resume=resume,
                    progress=advance,
                )
            async with client.open(file_id, offset, count, verify=verify) as stream:
                return await _copy(stream, path, settings.timeout_s, advance)

    size = run_with(settings, use)
    if as_json:
        print_json({"file_id": file_id, "file": path, "size": size})


def _target_path(file_id: str, target: str | None) -> str:
    base = file_id.rpartition("/")[2]
    if target is None:
        return base
    return os.path.join(target, base) if os.path.isdir(target) else target


def _is_replaceable(path: str) -> bool:
    """Whether a finished file may take the place of *path*, or make it.

    Not of pipes and devices, nor of what ``/dev/stdout`` and ``/dev/fd/3`` stand for: a file there
    may have lost its name, and somebody holds it open.
    """
    parent = os.path.realpath(os.path.dirname(path) or ".")
    if parent == "/dev" or parent.startswith("/proc/"):
        return False
    return os.path.isfile(path) or not os.path.exists(path)


async def _copy(
    stream: DownloadStream, path: str, timeout_s: float, advance: Callable[[int], None] | None
) -> int:
    """Write the stream to what is not a regular file: the standard output, a pipe, a device."""
    import trio

    size = 0
    with ExitStack() as stack:
        out: BinaryIO = sys.stdout.buffer
        if path != "-":
            out = stack.enter_context(await trio.to_thread.run_sync(open, path, "wb"))
        while data := await within(timeout_s, "download", stream.receive_some):
            await trio.to_thread.run_sync(out.write, data)
            size += len(data)
            if advance is not None:
                advance(len(data))
        out.flush()
    return size

"""``fdfs path``: from a file id to the paths that people see."""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING

import click

from fdfsfuse.cli.failure import NotFound
from fdfsfuse.cli.options import cluster_options, json_option, run_with, settings_of
from fdfsfuse.cli.output import print_json
from fdfsfuse.errors import FdfsError, StatusError
from fdfsfuse.proto.fileid import split_file_id

if TYPE_CHECKING:
    from fdfsfuse.client.client import Client
    from fdfsfuse.client.views import Candidate

MOUNT_ANSWER_S = 5.0


@click.command()
@click.argument("file_ids", metavar="ID...", nargs=-1, required=True)
@json_option
@cluster_options
def path(
    file_ids: tuple[str, ...],
    as_json: bool,
    trackers: tuple[str, ...],
    config: str | None,
    timeout_s: float | None,
) -> None:
    """Print the names of the files ID as VOLUME/PATH, one per line.

    A file with hard links has several. Where the volume is mounted on this machine, the path on
    the mount is printed instead; a mount that does not answer is named and left out. The exit code
    is 3 when a file has no name. With --json each line is an object with the keys file_id, paths
    (VOLUME/PATH) and mounted (paths on this machine).

    \b
    Example:
      fdfs path group1/M00/00/00/fwAAC2sC71qAc1b5AAAACw1KEYU551.txt
    """

    settings = settings_of(trackers, config, timeout_s)

    async def use(client: Client) -> None:
        from fdfsfuse.fuse.mounttable import mounts

        answering = mounts()
        for file_id in file_ids:
            found = await find_paths(client, file_id, settings.timeout_s)
            mounted = await find_mounted(answering, found, file_id)
            if as_json:
                paths = [os.fsdecode(item) for item in found]
                here = [os.fsdecode(item) for item in mounted]
                print_json({"file_id": file_id, "paths": paths, "mounted": here})
            else:
                for item in mounted or found:
                    click.echo(item)

    run_with(settings, use)


async def find_paths(client: Client, file_id: str, timeout_s: float) -> list[bytes]:
    """The names of a file as ``VOLUME/path``, asked from the names primary of its group.

    Raises:
        NotFound: it has none, or does not exist.
        NoNamesError: its volume is kept by stock servers.
    """
    import trio

    from fdfsfuse.client.names import open_session
    from fdfsfuse.proto import names

    group, name = split_file_id(file_id)
    deadline = trio.current_time() + timeout_s

    async def find() -> list[Candidate]:
        return await client.tracker.find_candidates(group)

    with trio.move_on_at(deadline):
        # Says at once when there is no such volume, which the session would wait for.
        await find()
    who = f"{socket.gethostname()}:fdfs path:{os.getpid()}"
    async with open_session(find, client=who) as session:
        try:
            answer = await session.call(names.Paths(name), deadline)
        except StatusError as exc:
            if exc.errno == errno.ENOENT:
                await _check_exists(client, file_id)
                raise NotFound(f"{file_id} has no name") from exc
            raise
    return [group.encode() + item for item in answer.paths]


async def _check_exists(client: Client, file_id: str) -> None:
    try:
        await client.info(file_id, flags=1)
    except StatusError as exc:
        if exc.errno == errno.ENOENT:
            raise NotFound(f"{file_id}: there is no such file") from exc
    except FdfsError:
        pass  # that it has no name is certain all the same


async def find_mounted(points: list[str], paths: list[bytes], file_id: str) -> list[bytes]:
    """Where *paths* are on the mounts on *points*, from which those that do not answer are removed.

    Each is asked on its own: one whose servers are away hides nothing that another one shows.
    """
    import trio

    found: dict[str, list[bytes]] = {}

    async def look(mount: str) -> None:
        found[mount] = await trio.to_thread.run_sync(
            _look_on_mount, mount, paths, file_id, abandon_on_cancel=True, limiter=threads
        )

    threads = trio.CapacityLimiter(max(1, len(points)))
    with trio.move_on_after(MOUNT_ANSWER_S):
        async with trio.open_nursery() as nursery:
            for mount in points:
                nursery.start_soon(look, mount)
    for mount in points:
        if mount not in found:
            click.echo(f"{mount}: the mount does not answer, not looked at", err=True)
    points[:] = [mount for mount in points if mount in found]
    return [path for mount in points for path in found[mount]]


def _look_on_mount(mount: str, paths: list[bytes], file_id: str) -> list[bytes]:
    from fdfsfuse.cli.ids import FILE_ID_XATTR

    found = []
    for item in paths:
        path = os.fsencode(mount) + b"/" + item
        try:
            # Another cluster's mount may have a file of the same name.
            same = os.getxattr(path, FILE_ID_XATTR, follow_symlinks=False) == file_id.encode()
        except OSError:
            continue
        if same:
            found.append(path)
    return found

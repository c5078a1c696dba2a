"""``fdfs id``: from a path on a mount to the file id."""

from __future__ import annotations

import errno
import os

import click

from fdfsfuse.cli.failure import NotFound
from fdfsfuse.cli.options import json_option
from fdfsfuse.cli.output import print_json
from fdfsfuse.errors import UsageError

FILE_ID_XATTR = "user.fdfs.file_id"


@click.command("id")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@json_option
def id_(paths: tuple[str, ...], as_json: bool) -> None:
    """Print the file id of the files PATH, which are on a mount.

    Every FastDFS client can fetch the content by that id. It changes when the file is written
    anew. With --json each line is an object with the keys path and file_id.

    \b
    Example:
      fdfs download $(fdfs id /mnt/fdfs/group1/photo.jpg) copy.jpg
    """
    for path in paths:
        file_id = file_id_of(path)
        if as_json:
            print_json({"path": path, "file_id": file_id})
        else:
            click.echo(file_id)


def file_id_of(path: str) -> str:
    """The file id of a path on a mount.

    Raises:
        NotFound: there is no such file, or it has no object (a directory, an empty file).
        UsageError: it is on another file system.
    """
    try:
        return os.getxattr(path, FILE_ID_XATTR).decode("ascii")
    except OSError as exc:
        if exc.errno == errno.ENOENT:
            raise NotFound(f"{path}: there is no such file") from exc
        if exc.errno == errno.EOPNOTSUPP or (exc.errno == errno.ENODATA and not _on_mount(path)):
            raise UsageError(f"{path} is not on a mount of fdfsfuse") from exc
        if exc.errno == errno.ENODATA:
            raise NotFound(f"{path} has no file id: only files with content have one") from exc
        raise


def _on_mount(path: str) -> bool:
    from fdfsfuse.fuse.mounttable import mounts

    real = os.path.realpath(path)
    return any(real == mount or real.startswith(mount + "/") for mount in mounts())

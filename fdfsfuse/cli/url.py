"""``fdfs url``."""

from __future__ import annotations

import hashlib
import os
import time

import click

from fdfsfuse.cli.options import (
    DEFAULT_CONFIG,
    ChosenCluster,
    client_config,
    json_option,
    on_cluster,
)
from fdfsfuse.cli.output import print_json
from fdfsfuse.errors import ConfigError
from fdfsfuse.proto.fileid import split_file_id


@click.command()
@click.argument("file_ids", metavar="ID...", nargs=-1, required=True)
@click.option(
    "--base",
    metavar="URL",
    help="What the URLs begin with.  [default: http:// and the first tracker's host]",
)
@click.option("--token/--no-token", default=None, help="With a token, or without one.")
@click.option(
    "--at",
    "timestamp",
    metavar="SECONDS",
    type=click.IntRange(min=0),
    help="Time of the token (Unix seconds).  [default: now]",
)
@json_option
@on_cluster
def url(
    file_ids: tuple[str, ...],
    base: str | None,
    token: bool | None,
    timestamp: int | None,
    as_json: bool,
    cluster: ChosenCluster,
) -> None:
    """Print the URLs of the files ID at web servers that serve FastDFS files.

    fdfsfuse serves no HTTP itself; this is for FastDFS's module of nginx or Apache. Where that
    checks tokens (http.anti_steal.check_token in the client.conf), they are added, made with
    http.anti_steal.secret_key: MD5 of file name, key and time. The port is
    http.tracker_server_port. No server is asked.

    With --json each line is an object with the keys file_id and url.

    \b
    Example:
      fdfs url --base https://img.example.com group1/M00/00/00/fwAAC2sC71qAc1b5AAAACw1KEYU551.jpg
    """
    path = cluster.config
    if path is None and os.path.exists(DEFAULT_CONFIG):
        path = DEFAULT_CONFIG
    config = None if path is None else client_config(path)
    key = config.secret_key if config is not None else ""
    if token is None:
        token = config is not None and config.check_token
    if token and not key:
        raise ConfigError(
            f"{path or 'no client.conf is given'}: tokens need http.anti_steal.secret_key"
        )
    if base is None:
        host = cluster.settings().trackers[0].host
        port = config.web_port if config is not None else 80
        host = f"[{host}]" if ":" in host else host
        base = f"http://{host}" if port == 80 else f"http://{host}:{port}"
    seconds = int(time.time()) if timestamp is None else timestamp
    for file_id in file_ids:
        _, name = split_file_id(file_id)
        text = f"{base.rstrip('/')}/{file_id}"
        if token:
            text += f"?token={make_token(name, key, seconds)}&ts={seconds}"
        if as_json:
            print_json({"file_id": file_id, "url": text})
        else:
            click.echo(text)


def make_token(name: str, secret_key: str, timestamp: int) -> str:
    """The anti-leech token of a file *name* (without its group), valid from *timestamp* on."""
    text = f"{name}{secret_key}{timestamp}"
    return hashlib.md5(text.encode("utf-8"), usedforsecurity=False).hexdigest()

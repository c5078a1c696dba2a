"""``fdfs crc32``."""

from __future__ import annotations

import sys

import click

from fdfsfuse.cli.options import json_option
from fdfsfuse.cli.output import print_json

_CHUNK = 1 << 20


@click.command()
@click.argument(
    "files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, allow_dash=True)
)
@json_option
def crc32(files: tuple[str, ...], as_json: bool) -> None:
    """Print the CRC-32 of local FILEs as file ids carry it; - is the standard input.

    It is the same as that of zlib, gzip and "fdfs info", as 8 hex digits. With --json each line is
    an object with the keys file, crc32 and size.

    \b
    Example:
      fdfs crc32 photo.jpg
    """
    for file in files:
        value, size = _crc32_of(file)
        if as_json:
            print_json({"file": file, "crc32": f"{value:08x}", "size": size})
        else:
            click.echo(f"{value:08x}  {file}")


def _crc32_of(file: str) -> tuple[int, int]:
    """CRC-32 and size of a file."""
    from isal import isal_zlib

    value = size = 0
    stream = sys.stdin.buffer if file == "-" else open(file, "rb")  # noqa: SIM115
    try:
        while data := stream.read(_CHUNK):
            value = isal_zlib.crc32(data, value)
            size += len(data)
    finally:
        if file != "-":
            stream.close()
    return value, size

"""``fdfs decode``: what a file id says, without asking anybody."""

from __future__ import annotations

import base64
from typing import NamedTuple

import click

from fdfsfuse.cli.options import json_option
from fdfsfuse.cli.output import print_json, size_text, when
from fdfsfuse.errors import ProtocolError, UsageError
from fdfsfuse.proto.fileid import (
    NORMAL_NAME_LENGTH,
    FileKind,
    Location,
    NameInfo,
    decode_name,
    parse_location,
    split_file_id,
)
from fdfsfuse.proto.trunk import SLOT_HEADER_SIZE, find_slot

_STORE_PATHS_MAX = 256


class Field(NamedTuple):
    """One thing that the id says. ``value`` is for programs, ``text`` for people."""

    key: str
    value: object
    text: str


@click.command()
@click.argument("file_ids", metavar="ID...", nargs=-1, required=True)
@json_option
def decode(file_ids: tuple[str, ...], as_json: bool) -> None:
    """Explain every field of the file ids ID. No server is asked.

    An id is made by the storage that takes an upload, and says where the file is and what it was:

    \b
      group1/M00/02/44/wKgDr2sC71qAc1b5AAAACw1KEYU551.jpg
      |      |   |     |                          |
      |      |   |     source, time, size, CRC-32 digits that fill up, and the extension
      |      |   sub directories
      |      store path
      group (volume)

    With --json each line is an object with one key for each field.

    \b
    Example:
      fdfs decode group1/M00/02/44/wKgDr2sC71qAc1b5AAAACw1KEYU551.jpg
    """
    for number, file_id in enumerate(file_ids):
        fields = explain(file_id)
        if as_json:
            print_json({field.key: field.value for field in fields})
            continue
        if number:
            click.echo()
        for field in fields:
            click.echo(f"{field.key.replace('_', ' ') + ':':17}{field.text}")


def explain(file_id: str) -> list[Field]:
    """Everything that *file_id* says. Raises UsageError when no storage could have made it."""
    group, name = split_file_id(file_id)
    try:
        location = parse_location(name, _STORE_PATHS_MAX)
        info = decode_name(location.name)
    except ProtocolError as exc:
        raise UsageError(f"{file_id!r} is no file id: {exc}") from exc
    if len(location.name) < NORMAL_NAME_LENGTH:
        raise UsageError(f"{file_id!r} is no file id: it is cut off")
    return [
        Field("file_id", file_id, file_id),
        Field("group", group, f"{group}, the volume whose storages have the file"),
        *_place(location),
        Field("kind", info.kind.name.lower(), _KINDS[info.kind]),
        _source(info),
        Field("created", info.timestamp, f"{when(info.timestamp)} ({info.timestamp})"),
        *_content(info),
        _random_bits(location),
        *_name_end(location, info),
    ]


_KINDS = {
    FileKind.NORMAL: "normal: the content never changes (links look the same)",
    FileKind.APPENDER: "appender: can be appended to, modified and truncated",
    FileKind.SLAVE: "slave: stored beside its master, whose id it has with a prefix behind it",
}


def _place(location: Location) -> list[Field]:
    index = location.path_index
    return [
        Field("store_path", index, f"M{index:02X}, store_path{index} of the storages"),
        Field("sub_directories", [location.high, location.low], location.directory),
        Field("path", f"data/{location.relative}", f"data/{location.relative} in the store path"),
    ]


def _source(info: NameInfo) -> Field:
    kind = "storage id" if info.source_is_id else "address"
    text = f"{info.source} ({kind} of the storage that took the upload)"
    return Field("source", info.source, text)


def _content(info: NameInfo) -> list[Field]:
    crc = f"{info.crc32:08x}"
    if info.kind is FileKind.NORMAL:
        exact = f" ({info.size} bytes)" if info.size >= 1024 else ""
        return [
            Field("size", info.size, size_text(info.size) + exact),
            Field("crc32", crc, f"{crc} of the content (random for links made by C storages)"),
        ]
    if info.kind is FileKind.APPENDER:
        return [
            Field("size", None, "not in the id, it changes: ask with fdfs info"),
            Field("first_crc32", crc, f"{crc} of the content it was uploaded with"),
        ]
    return [
        Field("size", None, "not in the id: ask with fdfs info"),
        Field("master_size", info.size, f"{info.size} bytes"),
        Field("master_crc32", crc, crc),
    ]


def _random_bits(location: Location) -> Field:
    """The bits between flags and size (file-id.md section 2); files from 4 GiB up have none."""
    raw = base64.urlsafe_b64decode(location.base[:27] + "=")
    field = int.from_bytes(raw[8:16], "big")
    if not field >> 63:
        return Field("random_bits", None, "none: the size takes their place")
    bits = field >> 32 & (1 << 23) - 1
    return Field("random_bits", f"{bits:06x}", f"{bits:06x} (make the name unique)")


def _name_end(location: Location, info: NameInfo) -> list[Field]:
    """What comes behind the 27 encoded characters."""
    rest = location.base[27:]
    fields: list[Field] = []
    slot = find_slot(location)
    if slot is not None:
        rest = rest[16:]
        text = (
            f"{slot.file_name}, content at byte {slot.offset + SLOT_HEADER_SIZE}, "
            f"slot of {slot.slot_size} bytes at {slot.offset}"
        )
        place = {"file": slot.file_name, "offset": slot.offset, "slot_size": slot.slot_size}
        fields.append(Field("trunk_file", place, text))
    if info.kind is FileKind.SLAVE:
        fields.append(Field("slave_part", rest, f"{rest}: rest of the master's name, prefix, ..."))
    else:
        digits, dot, _ = rest.partition(".")
        fields.append(Field("padding", digits, f"{digits or 'none'} (random digits)"))
        if not dot:
            rest = ""
    extension = rest.rpartition(".")[2] if "." in rest else ""
    fields.append(Field("extension", extension, extension or "none"))
    return fields

"""What a storage answers by the protocol documents: a plain model, to compare a real one with.

Written from protocol/wire.md section 4 and protocol/file-id.md, and sharing no code with the
storage: files are entries of a dict, in which metadata lie under their ``-m`` names. Requests are
whole bodies of bytes. Where V6.16 leaves junk (wire.md traps 5 and 8) the model says what a clean
server says; names with blanks or control characters, which the binlog could not hold, are refused.
"""

from __future__ import annotations

import base64
import re
import struct
import zlib
from dataclasses import dataclass, field

from tests.daemons.storage_server import GROUP

ENOENT, EEXIST, EISDIR, EINVAL, EFBIG = 2, 17, 21, 22, 27
BUFF_SIZE = 262144
LARGEST = 1 << 40
"""Files that are made larger than this are more than a disk can have."""
PATHS = 2

Key = tuple[int, str]
"""Store path index, path below its data directory."""


class Refused(Exception):
    """The request is answered with a status."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


@dataclass
class File:
    """A regular file, or a link to ``target``."""

    content: bytes = b""
    target: Key | None = None


@dataclass
class Answer:
    """The expected answer. ``body`` None: it names a new file, which `Model.learn` takes.

    ``ignore`` are bytes of the body that may be anything. ``closed``: the server closes.
    """

    status: int = 0
    body: bytes | None = b""
    ignore: slice = field(default_factory=lambda: slice(0, 0))
    silent: bool = False

    @property
    def closed(self) -> bool:
        return self.status == EINVAL or self.silent


@dataclass
class NewFile:
    """What the name of a new file has to say, and the file itself."""

    file: File
    path_index: int | None
    size: int
    crc: int | None
    appender: bool = False
    suffix: re.Pattern[str] | None = None
    directory: str | None = None
    replaces: Key | None = None


def text(raw: bytes) -> bytes:
    return raw.split(b"\0", 1)[0]


def require(condition: bool, status: int = EINVAL) -> None:
    if not condition:
        raise Refused(status)


@dataclass(frozen=True)
class NameBits:
    """The flags in a file name, by file-id.md sections 2 and 5."""

    appender: bool
    slave: bool
    crc: int
    source: bytes


def bits_of(name: str) -> NameBits:
    raw = base64.urlsafe_b64decode(name[10:37] + "=")
    source, _, flags, crc = struct.unpack(">4sIQI", raw)
    marked = bool(flags >> 63)
    trunk = marked and bool(flags >> 59 & 1)
    slave = len(name) > 60 or (len(name) > 44 and not trunk)
    return NameBits(marked and bool(flags >> 58 & 1), slave, crc, source)


class Model:
    """One storage with two store paths, of which only files made by requests are looked at."""

    def __init__(self) -> None:
        self.files: dict[Key, File] = {}
        self._new: NewFile | None = None

    # --- names --------------------------------------------------------------------------------

    def key(self, name: bytes) -> Key:
        """Check a name as all commands do."""
        require(10 < len(name) <= 127)
        index, rest = 0, name
        if name[:1] == b"M":
            require(name[3:4] == b"/" and re.fullmatch(rb"[0-9A-Fa-f]{2}", name[1:3]) is not None)
            index, rest = int(name[1:3], 16), name[4:]
        require(index < PATHS)
        match = re.fullmatch(rb"[0-9A-F]{2}/[0-9A-F]{2}/([!-.0-~]+)", rest)
        require(match is not None)
        assert match is not None
        require(match[1] not in (b".", b".."))
        return index, rest.decode()

    @staticmethod
    def name(key: Key) -> str:
        return f"M{key[0]:02X}/{key[1]}"

    def find(self, key: Key) -> File:
        """The file itself, links followed."""
        file = self.files.get(key)
        require(file is not None, ENOENT)
        assert file is not None
        return self.find(file.target) if file.target is not None else file

    def exists(self, key: Key) -> bool:
        try:
            self.find(key)
        except Refused:
            return False
        return True

    def own_group(self, field_: bytes) -> None:
        require(text(field_) == GROUP.encode())

    def group_and_name(self, body: bytes) -> Key:
        require(len(body) > 16)
        self.own_group(body[:16])
        return self.key(body[16:].rstrip(b"\0"))

    def appender(self, name: bytes) -> File:
        key = self.key(name)
        file = self.find(key)
        require(self.files[key].target is None)
        require(bits_of(self.name(key)).appender)
        return file

    @staticmethod
    def extension(field_: bytes) -> bytes:
        extension = text(field_)
        require(re.fullmatch(rb"[A-Za-z0-9._-]{0,6}", extension) is not None)
        return extension

    # --- the answer ---------------------------------------------------------------------------

    def answer(self, command: int, body: bytes, flags: int = 0) -> Answer:
        """Carry the request out and say what is answered."""
        if command == 82:
            return Answer(silent=True)
        try:
            if command not in (11, 21, 23, 24, 34):
                require(len(body) + 10 < BUFF_SIZE)
            handler = getattr(self, f"_command_{command}", None)
            require(handler is not None)
            assert handler is not None
            answer = handler(body, flags)
        except Refused as exc:
            return Answer(exc.status)
        assert isinstance(answer, Answer)
        return answer

    def learn(self, response: bytes) -> str:
        """Check the name in the answer of a request that made a file; returns it."""
        new = self._new
        assert new is not None
        group, name = response[:16], response[16:].decode()
        assert group == GROUP.encode().ljust(16, b"\0")
        assert len(name) == 44
        key = self.key(name.encode())
        assert key not in self.files, "a name was given twice"
        bits = bits_of(name)
        assert new.path_index is None or key[0] == new.path_index
        raw = base64.urlsafe_b64decode(name[10:37] + "=")
        size_field = int.from_bytes(raw[8:16], "big")
        assert (bits.appender, bits.slave) == (new.appender, False)
        assert size_field & 0xFFFFFFFF == (0 if new.appender else new.size)
        assert new.crc is None or bits.crc == new.crc
        assert new.suffix is None or new.suffix.fullmatch(name[-7:])
        assert new.directory is None or name[:10] == new.directory
        if new.replaces is not None:
            self._drop(new.replaces)
        self.files[key] = new.file
        return name

    def _made(self, new: NewFile) -> Answer:
        self._new = new
        return Answer(body=None)

    def _drop(self, key: Key) -> None:
        """Remove a file with its metadata."""
        self.files.pop(key, None)
        self.files.pop((key[0], key[1] + "-m"), None)

    # --- commands -----------------------------------------------------------------------------

    def _command_111(self, body: bytes, _flags: int) -> Answer:
        require(not body)
        return Answer()

    def _command_11(self, body: bytes, _flags: int, *, appender: bool = False) -> Answer:
        require(len(body) >= 15)
        index, size = struct.unpack(">Bq", body[:9])
        require(size == len(body) - 15)
        require(index == 255 or index < PATHS)
        extension = self.extension(body[9:15])
        content = body[15:]
        return self._made(
            NewFile(
                File(content),
                None if index == 255 else index,
                size,
                zlib.crc32(content),
                appender,
                _suffix(extension),
            )
        )

    def _command_23(self, body: bytes, flags: int) -> Answer:
        return self._command_11(body, flags, appender=True)

    def _command_21(self, body: bytes, _flags: int) -> Answer:
        require(len(body) > 38)
        length, size, prefix, extension = struct.unpack(">qq16s6s", body[:38])
        require(10 < length <= 127 and size >= 0 and size == len(body) - 38 - length)
        master = self.key(body[38 : 38 + length])
        name = self._slave_name(master, text(prefix), self.extension(extension))
        self.files[name] = File(body[38 + length :])
        return self._named(name)

    def _named(self, key: Key) -> Answer:
        return Answer(body=GROUP.encode().ljust(16, b"\0") + self.name(key).encode())

    def _slave_name(self, master: Key, prefix: bytes, extension: bytes) -> Key:
        require(re.fullmatch(rb"[A-Za-z0-9._-]{1,16}", prefix) is not None)
        self.find(master)
        require(len(master[1]) >= 34 and not (prefix == b"-m" and not extension))
        stem = self.name(master).encode()
        dot = stem.find(b".", len(stem) - 7)
        if dot >= 0:
            stem = stem[:dot]
        if extension and not extension.startswith(b"."):
            extension = b"." + extension
        slave = self.key(stem + prefix + extension)
        require(slave not in self.files, EEXIST)
        return slave

    def _command_12(self, body: bytes, _flags: int) -> Answer:
        self._delete(self.group_and_name(body))
        return Answer()

    def _delete(self, key: Key) -> None:
        file = self.files.get(key)
        require(file is not None, ENOENT)
        assert file is not None
        if file.target is not None and len(self.name(key)) > 44 and file.target in self.files:
            self._delete(file.target)
        self._drop(key)

    def _command_13(self, body: bytes, _flags: int) -> Answer:
        require(len(body) > 33)
        name_length, length, flag, group = struct.unpack(">qqc16s", body[:33])
        require(0 < name_length <= 127 and flag in b"OM")
        require(length >= 0 and length == len(body) - 33 - name_length)
        self.own_group(group)
        key = self.key(body[33 : 33 + name_length])
        self.find(key)
        pairs = _pairs(body[33 + name_length :])
        side = (key[0], key[1] + "-m")
        old = self.files.get(side)
        if flag == b"M":
            if not pairs:
                return Answer()
            if old is not None and old.content:
                pairs = list({**dict(_pairs(old.content)), **dict(pairs)}.items())
        if pairs:
            stored = b"\1".join(n + b"\2" + v for n, v in sorted(pairs, key=lambda pair: pair[0]))
            self.files[side] = File(stored)
        else:
            self.files.pop(side, None)
        return Answer()

    def _command_15(self, body: bytes, _flags: int) -> Answer:
        key = self.group_and_name(body)
        self.find(key)
        side = self.files.get((key[0], key[1] + "-m"))
        require(side is not None and side.content != b"", ENOENT)
        assert side is not None
        return Answer(body=side.content)

    def _command_14(self, body: bytes, _flags: int) -> Answer:
        require(len(body) > 32)
        offset, count, group = struct.unpack(">qq16s", body[:32])
        require(offset >= 0 and count >= 0)
        self.own_group(group)
        name = body[32:].rstrip(b"\0")
        if re.fullmatch(rb"(M0[01]/)?[0-9A-F]{2}/[0-9A-F]{2}/\.\.?", name) and len(name) > 10:
            raise Refused(EISDIR)
        content = self.find(self.key(name)).content
        require(offset < len(content))
        return Answer(body=content[offset : offset + count] if count else content[offset:])

    def _command_22(self, body: bytes, flags: int) -> Answer:
        key = self.group_and_name(body)
        content = self.find(key).content
        bits = bits_of(self.name(key))
        crc = bits.crc
        if bits.appender or bits.slave:
            crc = 0 if flags & 1 else zlib.crc32(content)
        if crc >> 31:
            crc -= 1 << 32
        source = ".".join(str(byte) for byte in bits.source).encode().ljust(16, b"\0")
        head = struct.pack(">qqq", len(content), 0, crc)
        return Answer(body=head + source, ignore=slice(8, 16))

    def _command_24(self, body: bytes, _flags: int) -> Answer:
        require(len(body) > 16)
        length, size = struct.unpack(">qq", body[:16])
        require(44 <= length <= 127 and size >= 0 and size == len(body) - 16 - length)
        file = self.appender(body[16 : 16 + length])
        file.content += body[16 + length :]
        return Answer()

    def _command_34(self, body: bytes, _flags: int) -> Answer:
        require(len(body) > 24)
        length, offset, size = struct.unpack(">qqq", body[:24])
        require(44 <= length <= 127 and size >= 0 and size == len(body) - 24 - length)
        require(offset >= 0)
        file = self.appender(body[24 : 24 + length])
        require(offset <= len(file.content))
        data = body[24 + length :]
        file.content = file.content[:offset] + data + file.content[offset + len(data) :]
        return Answer()

    def _command_36(self, body: bytes, _flags: int) -> Answer:
        require(len(body) > 16)
        length, size = struct.unpack(">qq", body[:16])
        require(44 <= length <= 127 and size >= 0 and length <= len(body) - 16)
        file = self.appender(body[16 : 16 + length])
        require(size <= LARGEST, EFBIG)
        file.content = file.content[:size].ljust(size, b"\0")
        return Answer()

    def _command_38(self, body: bytes, _flags: int) -> Answer:
        require(44 <= len(body) <= 127)
        key = self.key(body)
        name = self.name(key)
        require(_decodes(name) and bits_of(name).appender)
        file = self.find(key)
        require(self.files[key].target is None)
        return self._made(
            NewFile(
                file,
                key[0],
                len(file.content),
                zlib.crc32(file.content),
                suffix=re.compile(re.escape(name[-7:])),
                directory=name[:10],
                replaces=key,
            )
        )

    def _command_20(self, body: bytes, _flags: int) -> Answer:
        require(len(body) > 62)
        m, s, g, group, prefix, extension = struct.unpack(">qqq16s16s6s", body[:62])
        require(0 <= m <= 127 and 0 < s <= 127 and 0 < g <= 63)
        require(m + s + g <= 256 and m + s + g == len(body) - 62)
        self.own_group(group)
        suffix = self.extension(extension)
        source = self.key(body[62 + m : 62 + m + s])
        if m:
            master = self.key(body[62 : 62 + m])
            require(re.fullmatch(rb"[A-Za-z0-9._-]{1,16}", text(prefix)) is not None)
        size = len(self.find(source).content)
        target = self.files[source].target or source
        if not m:
            file = File(target=target)
            return self._made(NewFile(file, source[0], size, None, suffix=_suffix(suffix)))
        slave = self._slave_name(master, text(prefix), suffix)
        self.files[slave] = File(target=target)
        return self._named(slave)


def _decodes(name: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9_-]{27}", name[10:37]) is not None


def _suffix(extension: bytes) -> re.Pattern[str]:
    """The last 7 characters of a new name (file-id.md section 3)."""
    if not extension:
        return re.compile(r"[0-9]{7}")
    digits = 6 - len(extension)
    return re.compile(rf"[0-9]{{{digits}}}\." + re.escape(extension.decode()))


def _pairs(metadata: bytes) -> list[tuple[bytes, bytes]]:
    pairs = []
    for record in text(metadata).split(b"\1"):
        name, separator, value = record.partition(b"\2")
        if separator:
            pairs.append((name[:64], value[:256]))
    return pairs

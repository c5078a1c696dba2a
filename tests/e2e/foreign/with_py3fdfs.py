"""Runs py3Fdfs in a process of its own, which needs no warnings to be errors.

    python with_py3fdfs.py HOST PORT DIRECTORY

Prints one JSON object. Left out is what does not work in py3Fdfs against any server: metadata,
lists, ranges (it forgets the offset), slaves by buffer, uploads by file (which never end).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from fdfs_client.client import Fdfs_client


def text(value: bytes | str) -> str:
    """py3Fdfs gives ids as bytes or as text."""
    return value.decode() if isinstance(value, bytes) else value


def main(host: str, port: str, directory: Path) -> None:
    trackers = {"host_tuple": (host,), "port": int(port), "timeout": 60, "name": "trackers"}
    client = Fdfs_client(trackers)
    content = bytes(range(256)) * 1000
    (directory / "photo.jpg").write_bytes(content)
    by_name = client.upload_by_filename(str(directory / "photo.jpg"))["Remote file_id"]
    deleted = client.upload_by_buffer(b"deleted", "txt")["Remote file_id"]
    by_buffer = client.upload_by_buffer(b"from memory", "txt")["Remote file_id"]
    client.download_to_file(str(directory / "copy.jpg"), by_name)
    in_memory = client.download_to_buffer(by_buffer)["Content"]
    appender = client.upload_appender_by_buffer(b"0123456789", "log")["Remote file_id"]
    client.append_by_buffer(b" and more", appender)
    appended = client.download_to_buffer(appender)["Content"]
    client.modify_by_buffer(b"XYZ", appender)
    client.truncate_file(8, appender)
    client.delete_file(deleted)
    try:
        client.download_to_buffer(deleted)
    except Exception as exc:
        gone = str(exc)
    result = {
        "by_name": text(by_name),
        "by_buffer": text(by_buffer),
        "appender": text(appender),
        "deleted": text(deleted),
        "copied": (directory / "copy.jpg").read_bytes() == content,
        "in_memory": text(in_memory),
        "appended": text(appended),
        "gone": gone,
    }
    print(json.dumps(result))


main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))

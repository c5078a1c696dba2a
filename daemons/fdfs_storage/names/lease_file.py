"""``lease`` in the names directory: the longest lease that any session may have, in seconds.

A storage that was restarted does not know what the sessions before were granted, and the
configuration may say less now. Mounts rely on what they were told for as long as they were told.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from fdfs_storage.files import replace_file
from fdfs_storage.names.state import StateDamaged

NAME: Final = "lease"
_UNTOLD_S: Final = 10.0
"""Trees made before there was such a file have granted what is the default."""


def longest(directory: Path, lease_s: float, *, live: bool) -> float:
    """The lease of sessions that were *live* before, now that new ones get *lease_s*.

    Written down before it is returned, and before anything is granted.

    Raises:
        StateDamaged: the file makes no sense; the text says what to do.
        OSError: it cannot be read or written.
    """
    path = directory / NAME
    stored_s = _UNTOLD_S
    text = ""
    try:
        text = path.read_text()
        stored_s = float(text)
        if not 0 < stored_s < float("inf"):
            raise ValueError
    except FileNotFoundError:
        pass
    except ValueError:
        raise StateDamaged(
            f"{path} holds no number of seconds: put in the longest names_session_lease that"
            " storage.conf has had lately"
        ) from None
    result_s = max(lease_s, stored_s) if live else lease_s
    new = f"{result_s:g}\n"
    if new != text:
        replace_file(path, new.encode(), sync=True)
    return result_s

"""Random changes of names and attributes in a directory of a mount; also run as a program.

As a program it is told a directory and a seed. It prints a line for each change, and when its
standard input ends the model in JSON. Why it is a process of its own: see `mount_writer`.
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
from pathlib import Path

XATTR = "user.value"
Model = dict[str, str]
"""What is in a directory: 'directory', the target of a symlink, or what `file` says."""


def file(mode: int, xattr: str) -> str:
    """A file with the value of an xattr, '' for none."""
    return f"file {mode:o} {xattr}"


class Worker:
    """Changes a directory at random; ``model`` is what was acknowledged."""

    def __init__(self, place: Path, seed: int) -> None:
        self.model: Model = {}
        self.count = 0
        self._place = place
        self._draw = random.Random(seed)

    def step(self) -> None:
        """One change."""
        draw, model, place = self._draw, self.model, self._place
        name = f"n{draw.randrange(40)}"
        there = model.get(name)
        if there is None and draw.random() < 0.4:
            (place / name).mkdir()
            model[name] = "directory"
        elif there is None and draw.random() < 0.6:
            early = draw.choice(("", f"{self.count}"))
            with open(place / name, "xb", opener=lambda p, f: os.open(p, f, 0o644)) as made:
                if early:
                    os.setxattr(made.fileno(), XATTR, early.encode())
                made.write(b"content")
            model[name] = file(0o644, early)
        elif there is None:
            target = f"to{self.count}"
            (place / name).symlink_to(target)
            model[name] = target
        elif there.startswith("file") and draw.random() < 0.6:
            _, mode, xattr = there.split(" ")
            if draw.random() < 0.6:
                xattr = f"{self.count}"
                os.setxattr(place / name, XATTR, xattr.encode())
            elif xattr and draw.random() < 0.5:
                os.removexattr(place / name, XATTR)
                xattr = ""
            else:
                # Whoever is not root must be able to go on with it.
                mode = f"{draw.randrange(0o1000) | 0o600:o}"
                os.chmod(place / name, int(mode, 8))
            model[name] = file(int(mode, 8), xattr)
        elif draw.random() < 0.4:
            new_name = f"n{draw.randrange(40)}"
            if "directory" in (there, model.get(new_name)) and new_name in model:
                return
            (place / name).rename(place / new_name)
            model[new_name] = model.pop(name)
        elif there == "directory":
            (place / name).rmdir()
            del model[name]
        else:
            (place / name).unlink()
            del model[name]
        self.count += 1


def main(place: Path, seed: int) -> None:
    ended = threading.Event()

    def wait_for_end() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=wait_for_end, daemon=True).start()
    worker = Worker(place, seed)
    while not ended.is_set():
        worker.step()
        print(worker.count, flush=True)
    print(json.dumps(worker.model))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))

"""``python -m fdfsfuse.cli.child COMMAND [ARGUMENT...]``: a command that ends with its parent.

``fdfs mini`` and the tests start the daemons and the mount this way: from the interpreter they run
in themselves, whatever PATH says, and so that none is left behind when the parent is killed.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import signal
import sys

#: command -> (module, function), as in the package's entry points
COMMANDS = {
    "fdfs": ("fdfsfuse.cli.main", "main"),
    "fdfs-mount": ("fdfsfuse.cli.mount", "main"),
    "fdfs-trackerd": ("fdfs_tracker.cli", "main"),
    "fdfs-storaged": ("fdfs_storage.cli", "main"),
}
#: the variable that carries the parent's process id
PARENT = "FDFS_PARENT_PID"
_PR_SET_PDEATHSIG = 1


def end_with_parent(parent_pid: int) -> None:
    """Have the kernel send SIGTERM to this process when the thread that started it ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent_pid:  # it ended before the call
        os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    if command not in COMMANDS:
        sys.exit(f"usage: python -m fdfsfuse.cli.child {{{','.join(COMMANDS)}}} [ARGUMENT...]")
    parent = os.environ.pop(PARENT, None)
    if parent is not None:
        end_with_parent(int(parent))
    module, function = COMMANDS[command]
    sys.argv[:2] = [command]
    getattr(importlib.import_module(module), function)()


if __name__ == "__main__":
    main()

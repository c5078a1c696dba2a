"""``fdfs install-helpers``: what lets mount(8), /etc/fstab and .mount units mount volumes.

mount(8) knows a file system type by a program ``/sbin/mount.TYPE``, and nobody's PATH leads it into
a virtual environment: so two small scripts there start the fdfs-mount of this installation.
"""

from __future__ import annotations

import shlex
import sysconfig
from pathlib import Path

import click

from fdfsfuse.errors import ConfigError

HELPERS = ("mount.fdfs", "mount.fuse.fdfs")
_MARK = "# Written by `fdfs install-helpers`; `fdfs install-helpers --remove` deletes it."


@click.command("install-helpers")
@click.option(
    "--prefix",
    metavar="DIR",
    default="/",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Write to DIR/sbin.",
)
@click.option("--remove", is_flag=True, help="Delete the helpers again.")
def install_helpers(prefix: Path, remove: bool) -> None:
    """Let mount(8) mount volumes: write /sbin/mount.fdfs and /sbin/mount.fuse.fdfs (as root).

    They start the fdfs-mount of this very installation, so run it again when that has moved.

    \b
    Afterwards these work:
      mount -t fdfs tracker1,tracker2 /mnt/fdfs -o allow_other
    a line in /etc/fstab:
      tracker1,tracker2  /mnt/fdfs  fdfs  allow_other,_netdev  0  0
    and a systemd unit with What=tracker1,tracker2 and Type=fdfs.

    Exit codes: 0 done, 1 a file cannot be written, 2 wrong arguments.
    """
    directory = prefix / "sbin"
    for name in HELPERS:
        path = directory / name
        if path.exists() and _MARK not in path.read_text(encoding="utf-8", errors="replace"):
            raise ConfigError(f"{path} is there and was not written by fdfsfuse")
    for name in HELPERS:
        path = directory / name
        if remove:
            path.unlink(missing_ok=True)
            click.echo(f"removed {path}")
        else:
            directory.mkdir(parents=True, exist_ok=True)
            path.write_text(_script(), encoding="utf-8")
            path.chmod(0o755)
            click.echo(f"wrote {path}")


def _script() -> str:
    program = Path(sysconfig.get_path("scripts")) / "fdfs-mount"
    if not program.exists():
        raise ConfigError(f"{program} is missing; install the package again")
    return f'#!/bin/sh\n{_MARK}\nexec {shlex.quote(str(program))} --helper "$@"\n'

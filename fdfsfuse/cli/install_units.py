"""``fdfs install-units``: what lets systemd run the servers and mounts of this installation."""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

import click

from fdfsfuse.errors import ConfigError

_WRITTEN_FOR = "/opt/fdfsfuse/bin"
"""Where the files in ``systemd/`` have the commands."""
_NEXT = """\
Next, as root:
    systemd-sysusers && systemd-tmpfiles --create     # user fdfs, /etc/fdfs, /var/lib/fdfs
    systemctl daemon-reload
    systemctl enable --now fdfs-trackerd              # reads /etc/fdfs/tracker.conf
    systemctl enable --now fdfs-storaged@storage      # reads /etc/fdfs/storage.conf
    systemctl enable --now fdfs-mount@mnt-fdfs        # on /mnt/fdfs; reads /etc/fdfs/mount.env"""


@click.command("install-units")
@click.option(
    "--to",
    "target",
    metavar="DIR",
    default="/etc",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Write below this directory.",
)
@click.option("--dry-run", is_flag=True, help="Only print what would be written.")
def install_units(target: Path, dry_run: bool) -> None:
    """Write systemd units that run trackers, storages and mounts.

    They run the commands of this very installation: write them again after an upgrade, or when it
    has moved. Put changes of your own into drop-ins (`systemctl edit UNIT`), which are kept.

    \b
    Written are
      DIR/systemd/system/fdfs-trackerd.service    the tracker
      DIR/systemd/system/fdfs-storaged@.service   a storage per configuration file
      DIR/systemd/system/fdfs-mount@.service      a mount per mount point
      DIR/sysusers.d/fdfs.conf                    the user fdfs
      DIR/tmpfiles.d/fdfs.conf                    /etc/fdfs and /var/lib/fdfs

    Exit codes: 0 done, 1 a file cannot be written, 2 wrong arguments.
    """
    commands = Path(sysconfig.get_path("scripts"))
    if any(char in str(commands) for char in ' \t\n"\\%$'):
        raise ConfigError(f"{commands} cannot be written into a unit; install it elsewhere")
    source = _templates()
    for template in sorted(path for path in source.rglob("*") if path.is_file()):
        inner = template.relative_to(source)
        place = target / ("systemd" if inner.parts[0] == "system" else "") / inner
        if not dry_run:
            text = template.read_text(encoding="utf-8").replace(_WRITTEN_FOR, str(commands))
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text, encoding="utf-8")
        click.echo(place)
    if not dry_run:
        click.echo(_NEXT)


def _templates() -> Path:
    """The directory ``systemd`` of the wheel, or of the source tree that we run from.

    Raises:
        ConfigError: it is not there.
    """
    beside = Path(__file__).parents[2] / "systemd"
    for path in (Path(sys.prefix) / "share" / "fdfsfuse" / "systemd", beside):
        if (path / "system").is_dir():
            return path
    raise ConfigError(f"{path} is missing; install the package again")

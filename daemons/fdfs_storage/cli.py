"""``fdfs-storaged CONF``."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import click

from fdfs_storage.app import StorageApp
from fdfsfuse import __version__
from fdfsfuse.core.load_config import load_storage_config
from fdfsfuse.errors import ConfigError
from fdfsfuse.server.daemon import EXIT_USAGE, Daemon, log_level_of, run_daemon

_NAME = "fdfs-storaged"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("conf", type=click.Path(path_type=Path))
@click.version_option(__version__, prog_name=_NAME)
def main(conf: Path) -> None:
    """Run a FastDFS storage: it keeps the files of one group (volume).

    CONF is a FastDFS storage.conf. The keys that matter most (docs/configuration.rst has all):

    \b
      group_name = group1                 the volume that this storage belongs to
      base_path = /var/lib/fdfs/storage   state: binlog, counters, names of the volume
      store_path0 = /srv/disk0            file contents; more with store_path_count
      tracker_server = 10.0.0.1:22122     one line per tracker
      port = 23000                        where clients, mounts and other storages connect
      allow_hosts = 10.0.0.0/8            who may connect, default: everyone

    It stays in the foreground, logs to stderr and stops cleanly on SIGTERM or Ctrl-C. Under systemd
    use Type=notify ("fdfs install-units" writes the units). It waits until a tracker answers, and
    joins again by itself whenever one comes back.

    \b
    Exit codes: 0 stopped, 1 failed, 2 wrong use or configuration.
    Example:    fdfs-storaged /etc/fdfs/storage.conf
    """
    try:
        config, warnings = load_storage_config(str(conf), lambda path: Path(path).read_bytes())
    except ConfigError as exc:
        click.echo(f"{_NAME}: {exc}", err=True)
        sys.exit(EXIT_USAGE)

    app = StorageApp(config)
    logger = logging.getLogger(_NAME)

    async def run(daemon: Daemon) -> None:
        for warning in warnings:
            logger.warning("%s", warning)
        await app.run(daemon)

    sys.exit(run_daemon(_NAME, run, log_level=log_level_of(config.log_level)))

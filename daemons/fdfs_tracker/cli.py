"""The command ``fdfs-trackerd``."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import click
import trio

from fdfs_tracker.app import Tracker, describe
from fdfsfuse import __version__
from fdfsfuse.core.config import TrackerConfig
from fdfsfuse.core.load_config import load_tracker_config
from fdfsfuse.errors import ConfigError
from fdfsfuse.server.daemon import EXIT_USAGE, Daemon, log_level_of, run_daemon

_NAME = "fdfs-trackerd"
logger = logging.getLogger(__name__)


async def serve(config: TrackerConfig, warnings: tuple[str, ...], daemon: Daemon) -> None:
    """Run the tracker until the daemon is to stop."""
    for warning in warnings:
        logger.warning("%s", warning)
    if config.trunk.use_trunk_file:
        logger.warning(
            "use_trunk_file = true: only storages of C make trunk files, and only they are chosen "
            "as trunk servers"
        )
    try:
        tracker = Tracker(config)
    except OSError as exc:
        raise ConfigError(f"base_path = {config.base_path}: {exc.strerror or exc}") from exc
    async with trio.open_nursery() as nursery:

        async def run(task_status: trio.TaskStatus[int]) -> None:
            await tracker.run(stopping=daemon.stopping, task_status=task_status)

        port = await nursery.start(run)
        groups = len(tracker.cluster.groups)
        known = f"{groups} group{'' if groups == 1 else 's'} known" if groups else "no group yet"
        logger.info("%s", known)
        daemon.ready(f"tracker listens on {describe(config, port)}")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("conf", type=click.Path(path_type=Path))
@click.version_option(__version__, prog_name=_NAME)
def main(conf: Path) -> None:
    """Run a FastDFS tracker: it knows the storages and tells clients which one to use.

    CONF is a FastDFS tracker.conf. The keys that matter most (docs/configuration.rst has all):

    \b
      base_path = /var/lib/fdfs/tracker   state; the only key that must be there
      port = 22122                        where storages and clients connect
      bind_addr = 10.0.0.1                default: all local addresses
      store_lookup = 0                    0 take groups in turn, 1 store_group, 2 most free space
      reserved_storage_space = 20%        uploads leave this much free; or e.g. 10GB
      allow_hosts = 10.0.0.0/8            who may connect, default: everyone

    It stays in the foreground, logs to stderr and stops cleanly on SIGTERM or Ctrl-C. Under systemd
    use Type=notify ("fdfs install-units" writes the units).

    \b
    Exit codes: 0 stopped, 1 failed, 2 wrong use or configuration.
    Example:    fdfs-trackerd /etc/fdfs/tracker.conf
    """
    try:
        config, warnings = load_tracker_config(str(conf), lambda path: Path(path).read_bytes())
    except ConfigError as exc:
        click.echo(f"{_NAME}: {exc}", err=True)
        sys.exit(EXIT_USAGE)
    sys.exit(
        run_daemon(
            _NAME,
            lambda daemon: serve(config, warnings, daemon),
            log_level=log_level_of(config.log_level),
        )
    )

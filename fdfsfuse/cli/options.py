"""Options that several commands share, and what they stand for."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TypeVar

import click

from fdfsfuse.cli.completing import complete_group
from fdfsfuse.client.address import Address, parse_address
from fdfsfuse.client.sockets import CONNECT_TIMEOUT_S, TIMEOUT_S
from fdfsfuse.core.conf_file import parse_bytes
from fdfsfuse.errors import ConfigError, DeadlineExceeded, UsageError

if TYPE_CHECKING:
    from fdfsfuse.client.client import Client
    from fdfsfuse.core.config import ClientConfig

DEFAULT_CONFIG = "/etc/fdfs/client.conf"
ENVIRONMENT = "FDFS_TRACKERS"

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


def cluster_options(function: F) -> F:
    """``--tracker``, ``--config``, ``--timeout``; see `settings_of`."""
    for option in (
        click.option(
            "--timeout",
            "timeout_s",
            metavar="SECONDS",
            type=click.FloatRange(min=0, min_open=True),
            help="Give up when nothing moves for this long.  "
            "[default: network_timeout of the client.conf, or 30]",
        ),
        click.option(
            "--config",
            "config",
            metavar="FILE",
            type=click.Path(dir_okay=False),
            help=f"A client.conf: trackers and timeouts.  [default: {DEFAULT_CONFIG}, if there]",
        ),
        click.option(
            "--tracker",
            "-t",
            "trackers",
            metavar="HOST[:PORT]",
            multiple=True,
            help=f"A tracker; repeat it, or separate several by commas.  [env var: {ENVIRONMENT}]",
        ),
    ):
        function = option(function)
    return function


@dataclass(frozen=True, slots=True)
class ChosenCluster:
    """What the options of a command name; nothing is looked at before it is needed."""

    trackers: tuple[str, ...]
    config: str | None
    timeout_s: float | None

    def settings(self) -> Settings:
        """See `settings_of`."""
        return settings_of(self.trackers, self.config, self.timeout_s)

    def run(self, use: Callable[[Client], Awaitable[T]]) -> T:
        """Run *use* with a `Client` of the cluster."""
        return run_with(self.settings(), use)


def on_cluster(function: Callable[..., Any]) -> Callable[..., Any]:
    """`cluster_options` as one argument ``cluster``, a `ChosenCluster`."""

    @cluster_options
    @functools.wraps(function)
    def call(
        *args: Any,
        trackers: tuple[str, ...],
        config: str | None,
        timeout_s: float | None,
        **others: Any,
    ) -> Any:
        return function(*args, cluster=ChosenCluster(trackers, config, timeout_s), **others)

    return call


def size_up_to(largest: int) -> Callable[[click.Context, click.Parameter, str], int]:
    """A callback for options such as ``4K`` or ``1MB``, of at most *largest* bytes."""

    def convert(_ctx: click.Context, _param: click.Parameter, value: str) -> int:
        try:
            size = parse_bytes(value)
        except ValueError as exc:
            raise click.BadParameter(f"{value!r}: {exc}") from None
        if size > largest:
            raise click.BadParameter(f"{value!r}: must be at most {largest} bytes")
        return size

    return convert


group_option = click.option(
    "--group", "-g", metavar="VOLUME", help="Store in this volume.", shell_complete=complete_group
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


class NoTracker(UsageError):
    """Neither options nor environment nor a configuration file name a tracker."""


class Settings(NamedTuple):
    """What the options of a command come to."""

    trackers: list[Address]
    timeout_s: float
    connect_timeout_s: float


def settings_of(trackers: tuple[str, ...], config: str | None, timeout_s: float | None) -> Settings:
    """The trackers and timeouts that options, environment and configuration file name.

    The file counts when it is given, or is what names the trackers.

    Raises:
        NoTracker: nothing names a tracker.
        UsageError: one makes no sense.
        ConfigError: the configuration file is wrong.
    """
    found = client_config(config) if config is not None else None
    addresses: list[Address] = []
    if trackers:
        addresses = _parse(",".join(trackers))
    elif found is None and os.environ.get(ENVIRONMENT, "").strip(", "):
        addresses = _parse(os.environ[ENVIRONMENT])
    elif found is None and Path(DEFAULT_CONFIG).exists():
        found = client_config(DEFAULT_CONFIG)
    if not addresses and found is not None:
        addresses = [
            Address(host, server.port) for server in found.tracker_servers for host in server.hosts
        ]
    if not addresses:
        raise NoTracker(
            f"no tracker is known: use --tracker HOST[:PORT], set {ENVIRONMENT}, or write "
            f"{DEFAULT_CONFIG}"
        )
    if timeout_s is None:
        timeout_s = TIMEOUT_S if found is None else found.network_timeout_s
    return Settings(
        addresses, timeout_s, CONNECT_TIMEOUT_S if found is None else found.connect_timeout_s
    )


def _parse(text: str) -> list[Address]:
    found = [parse_address(item) for item in text.replace(",", " ").split()]
    if not found:
        raise UsageError(f"{text!r} names no tracker")
    return list(dict.fromkeys(found))


def client_config(path: str) -> ClientConfig:
    """Read a client.conf; what it has that we do not use is told on stderr. Raises ConfigError."""
    from fdfsfuse.core.load_config import load_client_config

    try:
        config, warnings = load_client_config(path, lambda name: Path(name).read_bytes())
    except OSError as exc:
        raise ConfigError(f"{path}: {exc.strerror}") from exc
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)
    return config


def run_with(settings: Settings, use: Callable[[Client], Awaitable[T]]) -> T:
    """Run *use* with a `Client` of the cluster that the options name."""
    import logging

    import trio

    from fdfsfuse.client.client import Client

    logger = logging.getLogger("fdfsfuse")
    if not logger.hasHandlers():
        # Python would print warnings between the output; what matters ends in an error.
        logger.addHandler(logging.NullHandler())

    async def run() -> T:
        async with Client(
            settings.trackers,
            timeout_s=settings.timeout_s,
            connect_timeout_s=settings.connect_timeout_s,
        ) as client:
            return await use(client)

    return trio.run(run)


async def within(timeout_s: float, what: str, wait: Callable[[], Awaitable[T]]) -> T:
    """Await *wait* for at most *timeout_s*; DeadlineExceeded after that."""
    import trio

    with trio.move_on_after(timeout_s):
        return await wait()
    raise DeadlineExceeded(f"{what}: no answer within {timeout_s:g} s")


def standard_input() -> BinaryIO:
    """Standard input without its buffer, which a thread that waits for input would keep locked."""
    buffer = sys.stdin.buffer
    raw: BinaryIO = getattr(buffer, "raw", buffer)
    return raw

"""Options that several commands share, and what they stand for."""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import click

from fdfsfuse.client.address import Address, parse_address
from fdfsfuse.errors import ConfigError, DeadlineExceeded, UsageError

if TYPE_CHECKING:
    from fdfsfuse.client.client import Client

DEFAULT_CONFIG = "/etc/fdfs/client.conf"
ENVIRONMENT = "FDFS_TRACKERS"

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


def cluster_options(function: F) -> F:
    """``--tracker``, ``--config``, ``--timeout``; see `cluster_of`."""
    for option in (
        click.option(
            "--timeout",
            "timeout_s",
            metavar="SECONDS",
            type=click.FloatRange(min=0, min_open=True),
            default=30.0,
            show_default=True,
            help="Give up when nothing moves for this long.",
        ),
        click.option(
            "--config",
            "config",
            metavar="FILE",
            type=click.Path(dir_okay=False),
            help=f"A client.conf that names the trackers.  [default: {DEFAULT_CONFIG}, if there]",
        ),
        click.option(
            "--tracker",
            "-t",
            "trackers",
            metavar="HOST[:PORT]",
            multiple=True,
            help=f"A tracker; several times, or with commas.  [env var: {ENVIRONMENT}]",
        ),
    ):
        function = option(function)
    return function


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


def tracker_addresses(trackers: tuple[str, ...], config: str | None) -> list[Address]:
    """The trackers that the options, the environment or a configuration file name.

    Raises:
        UsageError: nothing names a tracker, or one makes no sense.
        ConfigError: the configuration file is wrong.
    """
    if trackers:
        return _parse(",".join(trackers))
    if config is not None:
        return _from_config(config)
    if os.environ.get(ENVIRONMENT, "").strip(", "):
        return _parse(os.environ[ENVIRONMENT])
    if Path(DEFAULT_CONFIG).exists():
        return _from_config(DEFAULT_CONFIG)
    raise UsageError(
        f"no tracker is known: use --tracker HOST[:PORT], set {ENVIRONMENT}, or write "
        f"{DEFAULT_CONFIG}"
    )


def _parse(text: str) -> list[Address]:
    found = [parse_address(item) for item in text.replace(",", " ").split()]
    if not found:
        raise UsageError(f"{text!r} names no tracker")
    return list(dict.fromkeys(found))


def _from_config(path: str) -> list[Address]:
    from fdfsfuse.core.config import load_client_config

    try:
        config, warnings = load_client_config(path, lambda name: Path(name).read_bytes())
    except OSError as exc:
        raise ConfigError(f"{path}: {exc.strerror}") from exc
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)
    return [
        Address(host, server.port) for server in config.tracker_servers for host in server.hosts
    ]


def with_client(
    use: Callable[[Client], Awaitable[T]],
    trackers: tuple[str, ...],
    config: str | None,
    timeout_s: float,
) -> T:
    """Run *use* with a `Client` of the cluster that the options name."""
    import trio

    from fdfsfuse.client.client import Client

    addresses = tracker_addresses(trackers, config)

    async def run() -> T:
        async with Client(addresses, timeout_s=timeout_s) as client:
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

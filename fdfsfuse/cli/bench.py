"""``fdfs bench``: how fast a cluster serves small files."""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import click

from fdfsfuse.cli.options import ChosenCluster, group_option, json_option, on_cluster, size_up_to
from fdfsfuse.cli.output import print_json
from fdfsfuse.errors import FdfsError

if TYPE_CHECKING:
    from fdfsfuse.client.client import Client

_CONTENT_MAX = 256 << 20
_CLEANUP_S = 30.0


@dataclass
class Figures:
    """What one kind of operation took."""

    operation: str
    bytes_each: int
    wall_s: float = 0.0
    took_s: list[float] = field(default_factory=list)

    def data(self) -> dict[str, object]:
        """For --json: the documented keys."""
        took = sorted(self.took_s)
        return {
            "operation": self.operation,
            "count": len(took),
            "per_second": round(len(took) / self.wall_s, 1),
            "mib_per_second": round(len(took) * self.bytes_each / self.wall_s / 2**20, 1),
            "median_ms": round(took[len(took) // 2] * 1000, 3),
            "p99_ms": round(took[len(took) * 99 // 100] * 1000, 3),
        }


@click.command()
@click.option(
    "--size",
    "-s",
    callback=size_up_to(_CONTENT_MAX),
    default="4K",
    show_default=True,
    help="Bytes of each file: 512, 4K, 1M.",
)
@click.option(
    "--count", "-n", type=click.IntRange(min=1), default=1000, show_default=True, help="Files."
)
@click.option(
    "--jobs",
    "-j",
    type=click.IntRange(1, 256),
    default=8,
    show_default=True,
    help="Operations under way at the same time.",
)
@group_option
@json_option
@on_cluster
def bench(
    size: int,
    count: int,
    jobs: int,
    group: str | None,
    as_json: bool,
    cluster: ChosenCluster,
) -> None:
    """Measure a cluster: upload files, ask for them, download and delete them again.

    Each operation asks a tracker first, as every client does. Files that were uploaded are deleted
    again, also after an error or Ctrl-C. With --json each line is an object with the keys
    operation, count, per_second, mib_per_second, median_ms and p99_ms.

    \b
    Example:
      fdfs bench --size 64K --count 2000 --jobs 16
    """

    async def use(client: Client) -> None:
        await _measure(client, size, count, jobs, group, _table(as_json))

    cluster.run(use)


def _table(as_json: bool) -> Callable[[Figures], None]:
    if not as_json:
        click.echo(f"{'':10}{'count':>8}{'per s':>10}{'MiB/s':>9}{'median ms':>11}{'p99 ms':>9}")

    def show(figures: Figures) -> None:
        data = figures.data()
        if as_json:
            print_json(data)
            return
        rate = data["mib_per_second"] if figures.bytes_each else "-"
        click.echo(
            f"{data['operation']:10}{data['count']:8}{data['per_second']:10}{rate:>9}"
            f"{data['median_ms']:11}{data['p99_ms']:9}"
        )

    return show


async def _measure(
    client: Client,
    size: int,
    count: int,
    jobs: int,
    group: str | None,
    show: Callable[[Figures], None],
) -> None:
    import trio

    content = os.urandom(size)
    stored: list[str] = []

    async def upload(_number: int) -> None:
        stored.append(await client.upload(content, extension="bench", group=group))

    async def exists(number: int) -> None:
        await client.exists(stored[number])

    async def download(number: int) -> None:
        await client.download(stored[number])

    async def delete(_number: int) -> None:
        await client.delete(stored.pop())

    try:
        show(await _run(Figures("upload", size), upload, count, jobs))
        show(await _run(Figures("exists", 0), exists, count, jobs))
        show(await _run(Figures("download", size), download, count, jobs))
        show(await _run(Figures("delete", 0), delete, count, jobs))
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + _CLEANUP_S):
            await _delete_all(client, stored)
        if stored:
            click.echo(f"{len(stored)} files stay in the cluster, such as {stored[0]}", err=True)


async def _delete_all(client: Client, stored: list[str]) -> None:
    while stored:
        try:
            await client.delete(stored[-1])
        except FdfsError:
            return  # what has gone wrong before says more
        stored.pop()


async def _run(
    figures: Figures, operation: Callable[[int], Awaitable[None]], count: int, jobs: int
) -> Figures:
    import trio

    numbers = iter(range(count))

    async def work() -> None:
        for number in numbers:
            start = time.perf_counter()
            await operation(number)
            figures.took_s.append(time.perf_counter() - start)

    begin = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(min(jobs, count)):
            nursery.start_soon(work)
    figures.wall_s = time.perf_counter() - begin
    return figures

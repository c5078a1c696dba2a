"""``fdfs mini [DIR]``: a small cluster and its mount, on loopback, from an installed package."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import click
import trio
from rich.console import Console
from rich.markup import escape

from fdfsfuse.cli import mini_layout
from fdfsfuse.cli.mini_layout import Plan, Server
from fdfsfuse.cli.supervise import Child, ChildProblem, describe_exit
from fdfsfuse.client.pool import Pool
from fdfsfuse.client.tracker import TrackerClient
from fdfsfuse.errors import ConfigError, ConnectionProblem, StatusError
from fdfsfuse.fuse.mountpoint import MountDied, check_mountpoint
from fdfsfuse.fuse.mounttable import mounted_on, resolve
from fdfsfuse.proto.tracker import ServerStatus
from fdfsfuse.server.daemon import sd_notify, stop_at_hangup

ACTIVE_TIMEOUT_S = 60.0
MOUNT_TIMEOUT_S = 60.0
POLL_S = 0.05


@click.command()
@click.argument("directory", metavar="[DIR]", default="fdfs-mini", type=click.Path(file_okay=False))
@click.option(
    "--volumes",
    type=click.IntRange(1, mini_layout.MAX_VOLUMES),
    help="How many volumes.  [default: those of DIR, or 2]",
)
@click.option(
    "--replicas",
    type=click.IntRange(1, mini_layout.MAX_REPLICAS),
    help="How many storages each volume has; each keeps all its files.  "
    "[default: those of DIR, or 1]",
)
@click.option("--mount", "mount_path", metavar="PATH", help="Mount here.  [default: DIR/mnt]")
@click.option("--no-mount", is_flag=True, help="Start the servers only.")
@click.option("-o", "options", metavar="OPTIONS", help="Mount options, as for fdfs-mount.")
@click.option("--address", metavar="IP", help="The tracker's address.  [default: 127.0.0.2]")
@click.option(
    "--port",
    type=click.IntRange(1, 65534),
    help="The tracker's port; the storages get the next one.  [default: 22122 and 23000, "
    "or the next that are free]",
)
@click.option("--json", "as_json", is_flag=True, help="When ready, print one line of JSON.")
def mini(
    directory: str,
    volumes: int | None,
    replicas: int | None,
    mount_path: str | None,
    no_mount: bool,
    options: str | None,
    address: str | None,
    port: int | None,
    as_json: bool,
) -> None:
    """Run a tracker, volumes and a mount on this machine until Ctrl-C.

    Everything is kept in DIR (default: ./fdfs-mini); the same DIR brings the same files back. It is
    for trying fdfsfuse out and for tests: whoever can reach the ports is trusted, so it listens on
    loopback only.

    With --replicas 2 one storage of a volume may be stopped and started again while the others go
    on; otherwise everything ends when one of the processes does.

    \b
    Examples:
      fdfs mini
      fdfs mini ~/try --volumes 3 --replicas 2
      fdfs mini ~/try --mount /mnt/try -o allow_other

    Exit codes: 0 stopped by Ctrl-C or SIGTERM, 1 something failed, 2 wrong arguments.
    """
    if no_mount and (mount_path or options):
        raise click.UsageError("--no-mount does not go with --mount or -o")
    base = Path(directory).absolute()
    if "\n" in str(base):
        raise click.UsageError("a line break in DIR cannot be written into a configuration file")
    try:
        mountpoint = None if no_mount else Path(resolve(mount_path or str(base / "mnt")))
        with claim(base), contextlib.ExitStack() as held:
            old = mini_layout.read_plan(base / "mini.json")
            while True:
                plan = mini_layout.make_plan(
                    old, volumes=volumes, replicas=replicas, first=address, port=port
                )
                busy = mini_layout.busy_address(plan)
                if busy is not None:
                    raise ConfigError(f"{busy} is in use by another program, and {base} needs it")
                if mini_layout.hold(plan, held):
                    break
            mini_layout.write_confs(plan, base)
            if mountpoint is not None:
                prepare_mountpoint(mountpoint)
            cluster = Cluster(plan, base, mountpoint, options)
            trio.run(cluster.run, as_json)
    except ChildProblem as exc:  # more than one line: with the end of a log
        raise click.ClickException(str(exc)) from None


@contextlib.contextmanager
def claim(directory: Path) -> Iterator[None]:
    """Hold the directory; it is created when it is not there.

    Raises:
        ConfigError: another process runs a cluster from it, or it holds something else
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        content = set(os.listdir(directory))
    except OSError as exc:
        raise ConfigError(f"{directory}: {exc.strerror}") from exc
    if content - {"lock", "mini.json.new"} and "mini.json" not in content:
        raise ConfigError(f"{directory} is not empty and was not made by fdfs mini")
    with (directory / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read(20).strip()
            raise ConfigError(f"{directory} is in use by process {holder or '?'}") from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


def prepare_mountpoint(path: Path) -> None:
    """Make the directory if it is missing, and clear a mount whose process was killed.

    Raises:
        ConfigError: something is mounted there, or it cannot be a mount point
        MountFailed: what is mounted there is a file system of ours that is in use or hangs
    """
    try:
        if not mounted_on(path):
            path.mkdir(parents=True, exist_ok=True)
        check_mountpoint(path)
    except OSError as exc:
        raise ConfigError(f"{path}: {exc.strerror}") from exc
    except MountDied:
        unmount(path)
    if mounted_on(path):
        raise ConfigError(f"something is mounted on {path}")


def unmount(path: Path) -> None:
    """Take the mount out of the tree, even while somebody is in it."""
    subprocess.run(["fusermount3", "-u", "-z", str(path)], stdin=subprocess.DEVNULL, check=False)


@dataclass
class Cluster:
    """The processes of one run, started in the order of the fields and stopped in reverse."""

    plan: Plan
    directory: Path
    mountpoint: Path | None
    options: str | None
    tracker: Child = field(init=False)
    storages: dict[Server, Child] = field(init=False)
    mount: Child | None = field(init=False, default=None)
    _failure: Exception | None = field(init=False, default=None)
    _ready: bool = field(init=False, default=False)
    _stopped: set[Child] = field(init=False, default_factory=set)
    """Storages that somebody stopped; what their exit codes are is his business."""

    def __post_init__(self) -> None:
        logs = self.directory / "logs"
        conf = self.directory / "tracker.conf"
        self.tracker = Child("tracker", ["fdfs-trackerd", str(conf)], logs / "tracker.log")
        self.storages = {
            server: Child(
                server.name,
                ["fdfs-storaged", str(self.conf_of(server))],
                logs / f"{server.name}.log",
            )
            for server in self.plan.storages
        }
        if self.mountpoint is not None:
            command = ["fdfs-mount", str(self.plan.tracker), str(self.mountpoint), "-f"]
            if self.options:
                command += ["-o", self.options]
            self.mount = Child("mount", command, logs / "mount.log")

    async def run(self, as_json: bool) -> None:
        """Start everything, say so, and stop it at a signal.

        Raises:
            ChildProblem: a process did not start, ended by itself, or did not stop cleanly
        """
        problems: list[str] = []
        stop_at_hangup()
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._cancel_at_signal, signals, nursery.cancel_scope)
                    try:
                        await self._start(nursery)
                        self._ready = True
                        self._report(as_json)
                        await trio.sleep_forever()
                    except (ChildProblem, OSError) as exc:
                        self._failure = self._failure or exc
                        nursery.cancel_scope.cancel()
            finally:
                with trio.CancelScope(shield=True):
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._kill_at_signal, signals)
                        problems = await self._stop()
                        nursery.cancel_scope.cancel()
        if self._failure is not None:
            raise ChildProblem("\n".join([str(self._failure), *problems]))
        if problems:
            raise ChildProblem("\n".join(problems))
        if not as_json:
            click.echo(f"Stopped. The files stay in {self.directory}.")

    async def _cancel_at_signal(self, signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
        async for _ in signals:
            scope.cancel()

    async def _kill_at_signal(self, signals: AsyncIterator[int]) -> None:
        """A second Ctrl-C: do not wait for a clean end."""
        async for number in signals:
            # A script around us may send SIGTERM for the Ctrl-C that we have seen ourselves.
            if number == signal.SIGINT:
                for child in self._children():
                    child.signal(signal.SIGKILL)

    async def _start(self, nursery: trio.Nursery) -> None:
        firsts = {self.plan.of_volume(volume)[0] for volume in self.plan.volumes}
        # The first storage of a volume founds its tree, so it has to be there before the others.
        founders = {server: child for server, child in self.storages.items() if server in firsts}
        others = {server: child for server, child in self.storages.items() if server not in firsts}
        await self._launch(nursery, [self.tracker])
        for stage in (founders, others):
            await self._launch(nursery, stage.values())
            await self._wait_active(stage)
        if self.mount is not None:
            self.mount.launch(self.directory)
            nursery.start_soon(self._watch, self.mount, nursery.cancel_scope)
            await self._wait_mounted(self.mount)

    async def _launch(self, nursery: trio.Nursery, children: Collection[Child]) -> None:
        for child in children:
            child.launch(self.directory)
            nursery.start_soon(self._watch, child, nursery.cancel_scope)
        for child in children:
            await child.wait_ready()

    async def _watch(self, child: Child, scope: trio.CancelScope) -> None:
        await child.wait()
        if self._ready and self._others_go_on(child):
            self._stopped.add(child)
            click.echo(self._stopped_text(child), err=True)
            return
        self._failure = self._failure or child.died()
        scope.cancel()

    def _others_go_on(self, child: Child) -> bool:
        """Whether another storage of the same volume runs."""
        for server, own in self.storages.items():
            if own is child:
                volume = self.plan.of_volume(server.volume)
                return any(self.storages[other].running for other in volume)
        return False

    def _stopped_text(self, child: Child) -> str:
        (server,) = (server for server, own in self.storages.items() if own is child)
        return (
            f"{child.name} has stopped ({describe_exit(child.exit_code)}); the other storages of "
            f"{server.volume} go on. Start it again with: fdfs-storaged {self.conf_of(server)}"
        )

    def conf_of(self, server: Server) -> Path:
        """The configuration file of a storage."""
        return self.directory / f"{server.name}.conf"

    async def _wait_active(self, storages: Collection[Server]) -> None:
        """Wait until the tracker hands out these storages."""
        waiting = {server.at.host: server for server in storages}
        with trio.move_on_after(ACTIVE_TIMEOUT_S):
            async with Pool() as pool:
                client = TrackerClient([self.plan.tracker], pool)
                while waiting:
                    for volume in {server.volume for server in waiting.values()}:
                        with contextlib.suppress(StatusError, ConnectionProblem):
                            await client.query_store(volume)
                            for stat in await client.list_storages(volume):
                                if stat.status is ServerStatus.ACTIVE:
                                    waiting.pop(stat.storage_id, None)
                    await trio.sleep(POLL_S)
        if waiting:
            server = min(waiting.values(), key=lambda server: server.name)
            raise ChildProblem(
                f"{server.name} takes no files after {ACTIVE_TIMEOUT_S:g} s; "
                f"is the disk of {self.directory} full? "
                f"See {self.storages[server].log_path}"
            )

    async def _wait_mounted(self, mount: Child) -> None:
        """Wait until the mount is there and answers for each volume."""
        assert self.mountpoint is not None
        with trio.move_on_after(MOUNT_TIMEOUT_S):
            while True:
                # In a thread that may be left behind: a call into a mount can hang.
                if mounted_on(self.mountpoint) is not None and await trio.to_thread.run_sync(
                    _all_answer,
                    [self.mountpoint / name for name in self.plan.volumes],
                    abandon_on_cancel=True,
                ):
                    return
                await trio.sleep(POLL_S)
        raise ChildProblem(
            f"the mount does not answer after {MOUNT_TIMEOUT_S:g} s; see {mount.log_path}"
        )

    async def _stop(self) -> list[str]:
        """Stop the mount, which may have content to write, then storages, then the tracker."""
        problems: list[str] = []

        async def stop(child: Child) -> None:
            problem = await child.stop()
            known = child in self._stopped or child.name in str(self._failure)
            if problem is not None and not known:
                problems.append(problem)

        stages: list[Collection[Child]] = [
            [self.mount] if self.mount is not None else [],
            self.storages.values(),
            [self.tracker],
        ]
        for stage in stages:
            async with trio.open_nursery() as nursery:
                for child in stage:
                    nursery.start_soon(stop, child)
            if self.mountpoint is not None and mounted_on(self.mountpoint):
                unmount(self.mountpoint)  # the mount's process did not end by itself
        return problems

    def _children(self) -> list[Child]:
        return [
            self.tracker,
            *self.storages.values(),
            *([self.mount] if self.mount is not None else []),
        ]

    def _report(self, as_json: bool) -> None:
        if as_json:
            click.echo(json.dumps(self.describe()))
            sys.stdout.flush()
        else:
            print_summary(self)
        sd_notify("READY=1")

    def describe(self) -> dict[str, object]:
        """The cluster as data; what ``--json`` prints."""
        return {
            "directory": str(self.directory),
            "mount": str(self.mountpoint) if self.mountpoint is not None else None,
            "tracker": str(self.plan.tracker),
            "volumes": {
                volume: {
                    server.name: {
                        "address": str(server.at),
                        "base_path": str(self.directory / server.name),
                        "conf": str(self.conf_of(server)),
                    }
                    for server in self.plan.of_volume(volume)
                }
                for volume in self.plan.volumes
            },
            "processes": {child.name: child.pid for child in self._children()},
            "logs": {child.name: str(child.log_path) for child in self._children()},
        }


def _all_answer(paths: list[Path]) -> bool:
    try:
        for path in paths:
            os.listdir(path)
    except OSError:
        return False
    return True


def print_summary(cluster: Cluster) -> None:
    """What runs where, and what to try; in colour on a terminal."""
    # Not a rich table: it would cut long paths to the width of the terminal.
    console = Console(highlight=False, soft_wrap=True)
    rows = [("mount", str(cluster.mountpoint))] if cluster.mountpoint is not None else []
    rows.append(("tracker", str(cluster.plan.tracker)))
    for server in cluster.plan.storages:
        rows.append((server.name, f"{server.at}, files in {cluster.directory / server.name}"))
    rows.append(("logs", str(cluster.directory / "logs")))
    console.print("[green]fdfs mini is running[/green]")
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        console.print(f"[bold]{name:{width}}[/bold]   {escape(text)}")
    console.print("\nTry, in another terminal:")
    for line in suggestions(cluster):
        console.print(f"  [cyan]{escape(line)}[/cyan]")
    console.print(f"\nCtrl-C ends it. The files stay in {escape(str(cluster.directory))}.")


def suggestions(cluster: Cluster) -> list[str]:
    """Commands for somebody who has just started a cluster."""
    tracker, volume = cluster.plan.tracker, cluster.plan.volumes[0]
    lines = [f"export FDFS_TRACKERS={tracker}", "fdfs status"]
    if cluster.mountpoint is not None:
        there = cluster.mountpoint / volume
        lines += [
            f"cp /etc/services {there}/",
            f"setfattr -n user.width -v 1024 {there}/services",
            f"fdfs id {there}/services",
        ]
    else:
        lines += ["fdfs upload /etc/services"]
    return lines

"""``fdfs mini [DIR]``: a small cluster and its mount, on loopback, from an installed package."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import click
import trio
from rich.console import Console
from rich.markup import escape

from fdfsfuse.cli import mini_layout
from fdfsfuse.cli.mini_layout import Plan
from fdfsfuse.cli.supervise import Child, ChildProblem
from fdfsfuse.client.pool import Pool
from fdfsfuse.client.tracker import TrackerClient
from fdfsfuse.errors import ConfigError, ConnectionProblem, StatusError
from fdfsfuse.server.daemon import sd_notify

ACTIVE_TIMEOUT_S = 60.0
MOUNT_TIMEOUT_S = 60.0
POLL_S = 0.05


@click.command()
@click.argument("directory", metavar="[DIR]", default="fdfs-mini", type=click.Path(file_okay=False))
@click.option(
    "--volumes",
    type=click.IntRange(1, mini_layout.MAX_VOLUMES),
    help="How many volumes, each with one storage.  [default: those of DIR, or 2]",
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
    mount_path: str | None,
    no_mount: bool,
    options: str | None,
    address: str | None,
    port: int | None,
    as_json: bool,
) -> None:
    """Run a tracker, volumes and a mount on this machine until Ctrl-C.

    Everything is kept in DIR (default: ./fdfs-mini); the same DIR brings the same files back.  It
    is for trying out and for tests: who can reach the ports is trusted, so it listens on loopback
    only.

    Exit codes: 0 stopped by Ctrl-C or SIGTERM, 1 something failed, 2 wrong arguments.
    """
    if no_mount and (mount_path or options):
        raise click.UsageError("--no-mount does not go with --mount or -o")
    base = Path(directory).absolute()
    if "\n" in str(base):
        raise click.UsageError("a line break in DIR cannot be written into a configuration file")
    mountpoint = None if no_mount else Path(mount_path).absolute() if mount_path else base / "mnt"
    try:
        with claim(base):
            old = mini_layout.read_plan(base / "mini.json")
            plan = mini_layout.make_plan(old, volumes=volumes, first=address, port=port)
            busy = mini_layout.busy_address(plan)
            if busy is not None:
                raise ConfigError(f"{busy} is in use by another program, and {base} needs it")
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
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        path.stat()
    except OSError as exc:
        if exc.errno != errno.ENOTCONN or not is_mounted(path):
            raise ConfigError(f"{path}: {exc.strerror}") from exc
        unmount(path)  # nobody answers for it any more
    if is_mounted(path):
        raise ConfigError(f"something is mounted on {path}")


def is_mounted(path: Path) -> bool:
    """Whether the kernel's table has a mount there; asks nothing of the mount itself."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        points = [line.split(" ")[4] for line in table]
    # The table writes blanks, tabs, line breaks and backslashes as octal numbers.
    wanted = os.path.realpath(path.parent) + "/" + path.name
    for char in "\\ \t\n":
        wanted = wanted.replace(char, f"\\{ord(char):03o}")
    return wanted in points


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
    storages: list[Child] = field(init=False)
    mount: Child | None = field(init=False, default=None)
    _failure: Exception | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        logs = self.directory / "logs"
        conf = self.directory / "tracker.conf"
        self.tracker = Child("tracker", ["fdfs-trackerd", str(conf)], logs / "tracker.log")
        self.storages = [
            Child(name, ["fdfs-storaged", f"{self.directory / name}.conf"], logs / f"{name}.log")
            for name in self.plan.volumes
        ]
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
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._cancel_at_signal, signals, nursery.cancel_scope)
                    try:
                        await self._start(nursery)
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
        for stage in ([self.tracker], self.storages):
            for child in stage:
                child.launch(self.directory)
                nursery.start_soon(self._watch, child, nursery.cancel_scope)
            for child in stage:
                await child.wait_ready()
        await self._wait_active()
        if self.mount is not None:
            self.mount.launch(self.directory)
            nursery.start_soon(self._watch, self.mount, nursery.cancel_scope)
            await self._wait_mounted(self.mount)

    async def _watch(self, child: Child, scope: trio.CancelScope) -> None:
        await child.wait()
        self._failure = self._failure or child.died()
        scope.cancel()

    async def _wait_active(self) -> None:
        """Wait until the tracker hands out every storage."""
        waiting: set[str] = set(self.plan.volumes)
        with trio.move_on_after(ACTIVE_TIMEOUT_S):
            async with Pool() as pool:
                client = TrackerClient([self.plan.tracker], pool)
                while waiting:
                    for name in sorted(waiting):
                        with contextlib.suppress(StatusError, ConnectionProblem):
                            await client.query_store(name)
                            waiting.discard(name)
                    await trio.sleep(POLL_S)
        if waiting:
            name = sorted(waiting)[0]
            raise ChildProblem(
                f"{name} takes no files after {ACTIVE_TIMEOUT_S:g} s; "
                f"is the disk of {self.directory} full?"
            )

    async def _wait_mounted(self, mount: Child) -> None:
        """Wait until the mount is there and answers for each volume."""
        assert self.mountpoint is not None
        with trio.move_on_after(MOUNT_TIMEOUT_S):
            while True:
                # In a thread that may be left behind: a call into a mount can hang.
                if is_mounted(self.mountpoint) and await trio.to_thread.run_sync(
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
            if problem is not None and child.name not in str(self._failure):
                problems.append(problem)

        stages = [[self.mount] if self.mount is not None else [], self.storages, [self.tracker]]
        for stage in stages:
            async with trio.open_nursery() as nursery:
                for child in stage:
                    nursery.start_soon(stop, child)
            if self.mountpoint is not None and is_mounted(self.mountpoint):
                unmount(self.mountpoint)  # the mount's process did not end by itself
        return problems

    def _children(self) -> list[Child]:
        return [self.tracker, *self.storages, *([self.mount] if self.mount is not None else [])]

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
                name: {"storage": str(at), "base_path": str(self.directory / name)}
                for name, at in zip(self.plan.volumes, self.plan.storages, strict=True)
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
    for name, at in zip(cluster.plan.volumes, cluster.plan.storages, strict=True):
        rows.append((name, f"{at}, files in {cluster.directory / name}"))
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

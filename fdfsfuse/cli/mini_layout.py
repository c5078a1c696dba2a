"""What ``fdfs mini`` keeps in its directory, and the configuration files that it writes there.

The directory::

    mini.json            what must stay the same from run to run: volumes, addresses, ports
    lock                 held while a cluster runs from this directory
    tracker.conf         written anew at each start, in FastDFS's format
    VOLUME.conf          storage.conf of each volume's first storage, likewise
    VOLUME-2.conf        ... of its second one, and so on
    tracker/             the tracker's base_path
    VOLUME/              the first storage's base_path and only store path
    VOLUME-2/            ... the second one's
    logs/NAME.log        what each process printed (the previous runs' too, up to a size)
    mnt/                 the mount point, unless another one was asked for

Addresses are remembered because file ids carry the address of the storage that made them.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from fdfsfuse.client.address import STORAGE_PORT, TRACKER_PORT, Address
from fdfsfuse.errors import ConfigError

#: storages refuse 127.0.0.1 as a tracker's address (it means another machine on each machine)
FIRST_ADDRESS = "127.0.0.2"
MAX_VOLUMES = 32
MAX_REPLICAS = 8
#: how many ports above the usual one are tried
PORT_TRIES = 500


@dataclass(frozen=True, slots=True)
class Server:
    """One storage: ``name`` is that of its directory, its log and its configuration file."""

    name: str
    volume: str
    at: Address


@dataclass(frozen=True, slots=True)
class Plan:
    """One cluster; the storages of a volume are in the order in which they were added to it."""

    tracker: Address
    storages: tuple[Server, ...]

    @property
    def volumes(self) -> tuple[str, ...]:
        """The volumes, in the order in which they were added."""
        return tuple(dict.fromkeys(server.volume for server in self.storages))

    def of_volume(self, volume: str) -> tuple[Server, ...]:
        """The storages of a volume."""
        return tuple(server for server in self.storages if server.volume == volume)

    def to_json(self) -> str:
        """What ``mini.json`` holds; see `read_plan`."""
        return json.dumps(
            {
                "version": 2,
                "tracker": [self.tracker.host, self.tracker.port],
                "volumes": {
                    volume: [[server.at.host, server.at.port] for server in self.of_volume(volume)]
                    for volume in self.volumes
                },
            },
            indent=2,
        )


def server_name(volume: str, number: int) -> str:
    """The name of a volume's storage, *number* from 1 on: ``group1``, ``group1-2`` ..."""
    return volume if number == 1 else f"{volume}-{number}"


def read_plan(path: Path) -> Plan | None:
    """The plan of an earlier run, None when there was none.

    Raises:
        ConfigError: the file is there and is not ours or not readable
    """
    try:
        text = path.read_text()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path}: cannot be read: {exc}") from exc
    try:
        data = json.loads(text)
        if data["version"] not in (1, 2):
            raise ConfigError(f"{path}: version {data['version']} was made by a newer fdfs mini")
        tracker = _address(*data["tracker"])
        storages: list[Server] = []
        for name, places in data["volumes"].items():
            volume = check_volume(name)
            # Version 1 had one storage in each volume, and no list around its address.
            places = [places] if data["version"] == 1 else places
            storages += [
                Server(server_name(volume, number), volume, _address(*at))
                for number, at in enumerate(places, 1)
            ]
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise ConfigError(f"{path}: not written by fdfs mini: {exc}") from exc
    if not storages:
        raise ConfigError(f"{path}: not written by fdfs mini: it names no storage")
    return Plan(tracker, tuple(storages))


def make_plan(
    old: Plan | None,
    *,
    volumes: int | None,
    replicas: int | None,
    first: str | None,
    port: int | None,
) -> Plan:
    """Decide volumes, storages, addresses and ports.

    What an earlier run decided stays; there may only be more of everything.  Ports are looked for
    among the free ones of the machine, for a new plan only.

    Args:
        volumes: how many volumes, None for those of before, or 2
        replicas: how many storages each volume has at least, None for those of before, or 1
        first: the tracker's address in 127.0.0.0/8; storages get the addresses after it
        port: the tracker's port; storages get the one after it. None: FastDFS's usual ones,
            or the next that are free

    Raises:
        ConfigError: what is asked for does not fit what the directory holds
    """
    if old is None:
        return _new_plan(volumes or 2, replicas or 1, first or FIRST_ADDRESS, port)
    if first is not None and first != old.tracker.host:
        raise ConfigError(
            f"the data here belong to {old.tracker.host}: file ids carry the addresses, "
            "so --address cannot be changed"
        )
    if port is not None and port != old.tracker.port:
        raise ConfigError(f"the data here belong to port {old.tracker.port}: use another DIR")
    if volumes is not None and volumes < len(old.volumes):
        raise ConfigError(f"there are {len(old.volumes)} volumes here, not {volumes}")
    most = max(len(old.of_volume(volume)) for volume in old.volumes)
    if replicas is not None and replicas < most:
        raise ConfigError(f"there are {most} storages in a volume here, not {replicas}")
    names = [*old.volumes]
    names += [f"group{n}" for n in range(len(names) + 1, (volumes or len(names)) + 1)]
    wanted = [(volume, number) for volume in names for number in range(1, (replicas or most) + 1)]
    storages = list(old.storages)
    for volume, number in wanted:
        name = server_name(volume, number)
        if all(server.name != name for server in storages):
            # Every address so far is one after another, from the tracker's on.
            host = _loopback(old.tracker.host, len(storages) + 1)
            storages.append(Server(name, volume, Address(host, old.storages[0].at.port)))
    return Plan(old.tracker, tuple(sorted(storages, key=lambda server: names.index(server.volume))))


def _new_plan(volumes: int, replicas: int, first: str, port: int | None) -> Plan:
    hosts = [_loopback(first, offset) for offset in range(volumes * replicas + 1)]
    if port is None:
        tracker_port = _free_port(TRACKER_PORT, hosts[:1])
        storage_port = _free_port(STORAGE_PORT, hosts[1:])
    else:
        tracker_port, storage_port = port, port + 1
    wanted = [(f"group{n}", m) for n in range(1, volumes + 1) for m in range(1, replicas + 1)]
    return Plan(
        Address(hosts[0], tracker_port),
        tuple(
            Server(server_name(volume, number), volume, Address(host, storage_port))
            for (volume, number), host in zip(wanted, hosts[1:], strict=True)
        ),
    )


def check_volume(name: str) -> str:
    """``name`` if it can be a volume's name and a file name here, else ValueError."""
    allowed = 1 <= len(name) <= 16 and name.isascii() and name.isalnum()
    if not allowed or name in ("tracker", "logs", "mnt", "lock"):
        raise ValueError(f"{name!r} is no name of a volume")
    return name


def tracker_conf(plan: Plan, directory: Path) -> str:
    """The text of the tracker's configuration file."""
    return f"""\
# Written by `fdfs mini` at each start; what you change here is overwritten.
# A copy of it is a good start for a tracker.conf of your own.
bind_addr = {plan.tracker.host}
port = {plan.tracker.port}
base_path = {directory / "tracker"}

# Of the volumes, take one after the other for uploads that name none.
store_lookup = 0
# Nothing is uploaded to a disk with less than this left.
reserved_storage_space = 64MB
# A storage that says nothing for this long (seconds) is taken for dead.
check_active_interval = 30
"""


def storage_conf(plan: Plan, server: Server, directory: Path) -> str:
    """The text of a storage's configuration file."""
    return f"""\
# Written by `fdfs mini` at each start; what you change here is overwritten.
# A copy of it is a good start for a storage.conf of your own.
group_name = {server.volume}
bind_addr = {server.at.host}
port = {server.at.port}
tracker_server = {plan.tracker}

base_path = {directory / server.name}
store_path_count = 1
store_path0 = {directory / server.name}
# 16 x 16 directories; FastDFS's default is 256 x 256, which a first start takes seconds to make.
subdir_count_per_path = 16

# Seconds between signs of life, and between reports of the disk's size. By signs of life storages
# also hear of each other; 30 is usual.
heart_beat_interval = 1
stat_report_interval = 30
"""


def write_confs(plan: Plan, directory: Path) -> None:
    """Write the plan, all configuration files and the directories they name."""
    # The plan first: it marks the directory as ours, and the rest is made anew by any run.
    temporary = directory / "mini.json.new"
    temporary.write_text(plan.to_json() + "\n")
    os.replace(temporary, directory / "mini.json")
    (directory / "tracker").mkdir(exist_ok=True)
    (directory / "logs").mkdir(exist_ok=True)
    (directory / "tracker.conf").write_text(tracker_conf(plan, directory))
    for server in plan.storages:
        (directory / server.name).mkdir(exist_ok=True)
        conf = directory / f"{server.name}.conf"
        conf.write_text(storage_conf(plan, server, directory))


def busy_address(plan: Plan) -> Address | None:
    """The first address of the plan that something else uses, None when all are free."""
    return next((at for at in _addresses(plan) if not _is_free(at)), None)


def hold(plan: Plan, held: contextlib.ExitStack) -> bool:
    """Keep other runs off the plan's addresses, which its servers will listen on only later.

    They are free again when *held* is closed, or the process ends. False, and nothing is held, when
    another run was quicker.
    """
    with contextlib.ExitStack() as claims:
        for at in _addresses(plan):
            if not _claim(at, claims):
                return False
        held.enter_context(claims.pop_all())
    return True


def _addresses(plan: Plan) -> list[Address]:
    return [plan.tracker, *(server.at for server in plan.storages)]


def _claim(at: Address, claims: contextlib.ExitStack) -> bool:
    """Take an abstract name that stands for the address: one process of the machine can have it."""
    name = claims.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
    try:
        name.bind(f"\0fdfs-mini-{at}")
    except OSError:
        return False
    return True


def _address(host: object, port: object) -> Address:
    if not isinstance(host, str) or not isinstance(port, int) or not 0 < port < 65536:
        raise ValueError(f"{host!r} {port!r} is no address")
    return Address(_loopback(host, 0), port)


def _loopback(first: str, offset: int) -> str:
    try:
        address = ipaddress.IPv4Address(first) + offset
    except ValueError:
        raise ConfigError(f"{first} is no IPv4 address") from None
    if not address.is_loopback:
        # Whoever reaches the ports is trusted with everything, so a try-out stays on the machine.
        raise ConfigError(f"{address} is not in 127.0.0.0/8; fdfs mini runs on loopback only")
    return str(address)


def _free_port(first: int, hosts: list[str]) -> int:
    """The first port from ``first`` on that is free on all ``hosts``.

    Not from the kernel's range for outgoing connections: one of these could hold it next time.
    """
    for port in range(first, first + PORT_TRIES):
        if all(_is_free(Address(host, port)) for host in hosts):
            return port
    raise ConfigError(f"no port from {first} to {first + PORT_TRIES - 1} is free; use --port")


def _is_free(at: Address) -> bool:
    with contextlib.ExitStack() as claims:
        if not _claim(at, claims):
            return False
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As the daemons do: an old connection in TIME_WAIT does not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((at.host, at.port))
        except OSError:
            return False
    return True

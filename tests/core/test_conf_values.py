"""Amounts, addresses, allow_hosts and storage ids in configuration files."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdfsfuse.core.allow_hosts import AllowHosts
from fdfsfuse.core.conf_file import ReservedSpace, ServerAddress, parse_bytes
from fdfsfuse.core.storage_ids import RW_BOTH, RW_NONE, RW_READ, RW_WRITE, StorageIds
from fdfsfuse.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("1024", 1024),
        ("64KB", 64 << 10),
        ("64k", 64 << 10),
        ("500 MB", 500 << 20),
        ("10G", 10 << 30),
        ("1tb", 1 << 40),
        ("7B", 7),
    ],
)
def test_bytes(text: str, value: int) -> None:
    assert parse_bytes(text) == value


@pytest.mark.parametrize("text", ["", "K", "1.5G", "-1", "1KiB", "1 0", "10%"])
def test_malformed_bytes(text: str) -> None:
    with pytest.raises(ValueError, match="must be"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("1GB", "1024MB"),
        ("500 MB", "500MB"),
        ("10g", "10240MB"),
        ("1048575", "0MB"),  # plain numbers are bytes, divided down
        ("20%", "20.00%"),
        ("12.34%", "12.34%"),
        (".5%", "0.50%"),
    ],
)
def test_reserved_space(text: str, shown: str) -> None:
    assert str(ReservedSpace.parse(text)) == shown


@given(st.integers(1, 9999))
def test_reserved_ratio_survives_command_75(hundredths: int) -> None:
    reserved = ReservedSpace.parse(f"{hundredths / 100}%")
    assert ReservedSpace.parse(str(reserved)).ratio == pytest.approx(reserved.ratio)


def test_missing_reserved_space_is_1024_mb() -> None:
    assert ReservedSpace() == ReservedSpace.parse("1G")


# load-balancing.md section 2: the table of checks; all comparisons are strict


def test_group_check() -> None:
    absolute, ratio = ReservedSpace(100), ReservedSpace.parse("10%")
    assert not absolute.group_has_space(100, 1000)
    assert absolute.group_has_space(101, 1000)
    assert not ratio.group_has_space(100, 1000)
    assert ratio.group_has_space(101, 1000)
    assert not ratio.group_has_space(0, 0)


def test_path_check_divides_the_absolute_amount() -> None:
    reserved = ReservedSpace(100)
    assert not reserved.path_has_space(33, 1000, 3)
    assert reserved.path_has_space(34, 1000, 3)
    ratio = ReservedSpace.parse("10%")
    assert not ratio.path_has_space(100, 1000, 3)
    assert ratio.path_has_space(101, 1000, 3)


def test_storage_check_counts_the_file_in_whole_mb() -> None:
    reserved = ReservedSpace(100)
    assert reserved.path_has_space(102, 1000, 1, size=(2 << 20) - 1)
    assert not reserved.path_has_space(102, 1000, 1, size=2 << 20)


def test_reserved_mb_of_a_ratio() -> None:
    assert ReservedSpace.parse("1%").reserved_mb(516038) == 5160
    assert ReservedSpace(77).reserved_mb(516038) == 77


@pytest.mark.parametrize(
    ("text", "hosts", "port"),
    [
        ("10.0.0.1:23", ("10.0.0.1",), 23),
        ("10.0.0.1", ("10.0.0.1",), 22122),
        ("tracker.example:1", ("tracker.example",), 1),
        ("10.0.0.1,192.168.0.1:5", ("10.0.0.1", "192.168.0.1"), 5),
        ("[2001:db8::1]:5", ("2001:db8::1",), 5),
        ("[2001:db8::1]", ("2001:db8::1",), 22122),
        ("2001:db8::1", ("2001:db8::1",), 22122),
        ("10.0.0.1,[2001:db8::1]:5", ("10.0.0.1", "2001:db8::1"), 5),
    ],
)
def test_server_addresses(text: str, hosts: tuple[str, ...], port: int) -> None:
    address = ServerAddress.parse(text)
    assert (address.hosts, address.port) == (hosts, port)
    assert ServerAddress.parse(str(address)) == address


@pytest.mark.parametrize("text", ["", ":1", "a:", "a:0", "a:65536", "a,b,c:1", "a,:1", "a b:1"])
def test_malformed_server_addresses(text: str) -> None:
    with pytest.raises(ValueError, match="must be"):
        ServerAddress.parse(text)


ALLOW = AllowHosts.parse(
    ["10.0.1.[1-15,20],192.168.1.7", "172.16.0.0/12", "2001:db8::/32", "office.example"]
)


@pytest.mark.parametrize(
    "ip",
    ["10.0.1.1", "10.0.1.15", "10.0.1.20", "192.168.1.7", "172.31.255.255", "2001:db8:1::9"],
)
def test_allowed_hosts(ip: str) -> None:
    assert ALLOW.allows(ip)


@pytest.mark.parametrize(
    "ip", ["10.0.1.0", "10.0.1.16", "10.0.2.1", "192.168.1.8", "172.32.0.0", "2001:db9::1", "junk"]
)
def test_hosts_that_are_not_allowed(ip: str) -> None:
    assert not ALLOW.allows(ip)


def test_ipv4_mapped_addresses_count_as_ipv4() -> None:
    assert ALLOW.allows("::ffff:10.0.1.1")
    assert not ALLOW.allows("::ffff:10.0.1.16")


def test_a_range_may_stand_in_any_place() -> None:
    allow = AllowHosts.parse(["10.[0-3].[1,9].5"])
    assert allow.allows("10.3.9.5")
    assert not allow.allows("10.4.9.5")


def test_everyone_is_allowed_without_a_list_or_by_a_star() -> None:
    assert AllowHosts.parse([]).allows("1.2.3.4")
    assert AllowHosts.parse(["10.0.0.1", "*"]).allows("1.2.3.4")


def test_names_allow_nobody_until_they_are_resolved() -> None:
    assert ALLOW.host_names == ("office.example",)
    assert not ALLOW.allows("198.51.100.9")
    resolved = ALLOW.resolved(["198.51.100.9", "2001:db9::1"])
    assert resolved.allows("198.51.100.9")
    assert resolved.allows("2001:db9::1")
    assert resolved.allows("10.0.1.1")


@pytest.mark.parametrize(
    "item",
    ["10.0.0", "10.0.1.[1-300]", "10.0.1.[a]", "10.0.1.[1", "10.1.[1-2]", "-x", "a b", "1.2.3.4.5"],
)
def test_malformed_allow_hosts(item: str) -> None:
    with pytest.raises(ValueError, match="none of"):
        AllowHosts.parse([item])


TABLE = """
# <id> <group_name> <ip_or_hostname[:port]> [options]
100001   group1  192.168.0.196
100002   group1  192.168.0.197,10.0.0.7:23001   rw=read  # comment
100003   group1  [2409:8a20:42d:2f40:587a:4c47:72c0:ad8e]:23001  rw=none
100004   group2  10.0.0.9:23000 rw=writeonly
100005   group2  10.0.0.9:23001 rw=all
"""


def test_storage_ids_table() -> None:
    table = StorageIds.parse(TABLE, "ids")
    assert [entry.rw_mode for entry in table] == [RW_BOTH, RW_READ, RW_NONE, RW_WRITE, RW_BOTH]
    assert [entry.line() for entry in table] == [
        "100001 group1 192.168.0.196",
        "100002 group1 192.168.0.197,10.0.0.7:23001 rw=read",
        "100003 group1 [2409:8a20:42d:2f40:587a:4c47:72c0:ad8e]:23001 rw=none",
        "100004 group2 10.0.0.9:23000 rw=write",
        "100005 group2 10.0.0.9:23001",
    ]
    assert StorageIds.parse("\n".join(e.line() for e in table), "again") == table
    assert table.has_ipv6
    assert table.fit_file_names


def test_looking_up_storage_ids() -> None:
    table = StorageIds.parse(TABLE, "ids")

    def found(group: str | None, ip: str, port: int) -> str | None:
        entry = table.find(group, ip, port)
        return None if entry is None else entry.storage_id

    assert found("group2", "10.0.0.9", 23001) == "100005"
    assert found("group2", "10.0.0.9", 23002) is None
    assert found("group1", "192.168.0.196", 9) == "100001", "no port: the only one on its host"
    assert found("group1", "10.0.0.7", 23001) == "100002"
    assert found("group2", "10.0.0.7", 23001) is None
    assert found(None, "10.0.0.7", 23001) == "100002"
    assert table.by_id("100009") is None


@pytest.mark.parametrize(
    "line",
    [
        "100001 group1",
        "0 group1 10.0.0.1",
        "x group1 10.0.0.1",
        "1234567890123456 group1 10.0.0.1",
        "1 group-1 10.0.0.1",
        "1 group1 10.0.0.1:99999",
        "1 group1 10.0.0.1 rw=sometimes",
        "1 group1 10.0.0.1 mode=read",
    ],
)
def test_malformed_storage_ids(line: str) -> None:
    with pytest.raises(ConfigError, match=r"^ids:2: "):
        StorageIds.parse(f"# head\n{line}\n", "ids")


def test_an_id_is_allowed_once() -> None:
    with pytest.raises(ConfigError, match=r"^ids:2: .*given before"):
        StorageIds.parse("1 group1 10.0.0.1\n1 group1 10.0.0.2\n", "ids")

"""Servers of a command are held to one address, whoever of its processes opens them."""

import json
import socket
import subprocess
import sys

import pytest

from launch.own_address import address_of_node, interfaces_meant, port_on_all_addresses, start_held_to
from pretrain.errors import ConfigError

OWN = "127.0.0.7"
SERVERS = """
import json, socket, threading
found = []
def listen(family, address):
    with socket.socket(family) as server:
        server.bind((address, 0))
        server.listen()
        found.append(server.getsockname()[0])
listen(socket.AF_INET, "0.0.0.0")
listen(socket.AF_INET6, "::")
listen(socket.AF_INET, "127.0.0.1")
thread = threading.Thread(target=listen, args=(socket.AF_INET, ""))
thread.start()
thread.join()
print(json.dumps(found), flush=True)
"""
TWICE = f"import subprocess, sys; [subprocess.run([sys.executable, '-c', {SERVERS!r}], check=True) for _ in range(2)]"


def test_all_addresses_become_one_in_children_and_threads_too_and_others_stay() -> None:
    process = start_held_to(OWN, [sys.executable, "-c", TWICE], stdout=subprocess.PIPE)
    said, _ = process.communicate(timeout=60)
    assert [json.loads(line) for line in said.splitlines()] == 2 * [[OWN, f"::ffff:{OWN}", "127.0.0.1", OWN]]
    assert process.returncode == 0


def test_a_port_that_is_taken_is_told_to_the_server() -> None:
    with socket.socket() as taken:
        taken.bind((OWN, 0))
        bind = f"import socket; socket.socket().bind(('', {taken.getsockname()[1]}))"
        process = start_held_to(OWN, [sys.executable, "-c", bind], stderr=subprocess.PIPE)
        assert b"Address already in use" in process.communicate(timeout=60)[1]


@pytest.mark.parametrize(
    ("family", "address", "port"),
    [
        (socket.AF_INET, "0.0.0.0", 258),
        (socket.AF_INET, "10.0.0.1", None),
        (socket.AF_INET, "127.0.0.1", None),
        (socket.AF_INET6, "::", 258),
        (socket.AF_INET6, "::ffff:0.0.0.0", 258),
        (socket.AF_INET6, "::1", None),
    ],
)
def test_only_a_name_for_all_addresses_is_changed(family: socket.AddressFamily, address: str, port: int | None) -> None:
    numbers = socket.inet_pton(family, address)
    name = int(family).to_bytes(2, sys.byteorder) + bytes([1, 2])
    name += numbers + bytes(8) if family == socket.AF_INET else bytes(4) + numbers + bytes(4)
    assert port_on_all_addresses(name) == port


def test_names_of_other_kinds_are_left_alone() -> None:
    assert port_on_all_addresses(int(socket.AF_UNIX).to_bytes(2, sys.byteorder) + b"/tmp/a-socket.sock\0") is None
    assert port_on_all_addresses(b"") is None


def test_the_address_of_a_node_is_that_of_the_named_interface() -> None:
    assert address_of_node("n1", "lo") == "127.0.0.1"
    with pytest.raises(ConfigError, match=r"^PRETRAIN_INTERFACE=ib7: n1 has no such interface, but .*\blo\b"):
        address_of_node("n1", "ib7")


@pytest.mark.parametrize(
    ("pattern", "meant"),
    [
        ("ib0", ["ib0", "ib01"]),
        ("ib", ["ib01", "ib0"]),
        ("=ib0", ["ib0"]),
        ("eth,ib0", ["ib0", "ib01", "eth0"]),
        ("^docker,ib", ["eth0"]),
        ("^=ib0", ["ib01", "eth0", "docker0"]),
        ("mlx", []),
    ],
)
def test_interfaces_are_named_as_for_nccl(pattern: str, meant: list[str]) -> None:
    assert interfaces_meant(pattern, ["lo", "ib01", "ib0", "eth0", "docker0"]) == meant


@pytest.mark.parametrize("found", ["127.0.1.1", None])
def test_a_name_that_others_cannot_reach_is_refused(monkeypatch: pytest.MonkeyPatch, found: str | None) -> None:
    def resolve(_: str) -> str:
        if found is None:
            raise socket.gaierror
        return found

    monkeypatch.setattr(socket, "gethostbyname", resolve)
    with pytest.raises(ConfigError, match=rf"node n1 resolves to {found or 'no address'}, .*set PRETRAIN_INTERFACE"):
        address_of_node("n1", None)

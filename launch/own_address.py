"""Holds the servers of a command to one address: what it, or a child of it, would bind to all addresses of the machine.

    process = start_held_to("10.0.0.7", ["ray", "start", ...])

Ray 2.60 takes a node's address to tell it to others, and listens on every address all the same (ray-project/ray#65867); nothing
that it can be told changes that. So the kernel asks us: a seccomp filter hands every bind(2) of the command to this process
(`man 2 seccomp_unotify`), which binds the socket to the one address where all were meant, and lets other calls pass. It takes no
privilege, but Linux 5.6 on x86-64 or ARM. Where this process dies, the command can bind nothing more.

Alternatives not taken: a preloaded library (needs a compiler, and is not asked by programs that are linked statically), a network
namespace (needs root), packet filters (the same). It is no wall against a hostile command, which has other ways to be reached.
"""

import ctypes
import errno
import fcntl
import ipaddress
import os
import platform
import select
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.errors import ConfigError


@dataclass(frozen=True)
class _Calls:
    """Numbers of system calls on a processor."""

    architecture: int
    """As the audit subsystem numbers them."""
    bind: int
    seccomp: int


_CALLS = {"x86_64": _Calls(0xC000003E, 49, 317), "aarch64": _Calls(0xC00000B7, 200, 277)}
_PIDFD_OPEN, _PIDFD_GETFD = 434, 438
_PR_SET_NO_NEW_PRIVS = 38
_SET_MODE_FILTER, _NEW_LISTENER = 1, 1 << 3
_ALLOW, _ASK = 0x7FFF0000, 0x7FC00000
_RECEIVE, _SEND = 0xC0502100, 0xC0182101
_CONTINUE = 1
_ASKED_BYTES, _ANSWER = 80, struct.Struct("=QqiI")
_IPV4_BYTES, _IPV6_BYTES = 16, 28
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
_ADDRESS_OF_INTERFACE = 0x8915
_PROBE = """
import socket, sys
with socket.socket() as probe:
    probe.bind(("", 0))
    sys.exit(probe.getsockname()[0] != sys.argv[1])
"""


class CannotHold(ConfigError):
    """This kernel, or a container on it, does not let a process decide on another's addresses."""


def address_of_node(node: str, interface: str | None) -> str:
    """The IPv4 address of this machine on a network interface, or the one that its name resolves to.

    Args:
        node: this machine's name, for messages.
        interface: as `interfaces_meant` reads it; None: none was named.

    Raises:
        ConfigError: there is none, or one that other machines cannot reach.
    """
    if interface:
        names = [name for _, name in socket.if_nameindex()]
        chosen = interfaces_meant(interface, names)
        if not chosen:
            raise ConfigError(f"PRETRAIN_INTERFACE={interface}: {node} has no such interface, but {', '.join(names)}")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
            for name in chosen:
                with suppress(OSError):  # it has no IPv4 address
                    request = struct.pack("256s", name.encode())
                    return socket.inet_ntoa(fcntl.ioctl(asked, _ADDRESS_OF_INTERFACE, request)[20:24])
        raise ConfigError(f"PRETRAIN_INTERFACE={interface}: {', '.join(chosen)} has no IPv4 address on {node}")
    found = "no address"
    with suppress(OSError):
        found = socket.gethostbyname(socket.gethostname())
    if found == "no address" or found.startswith("127."):
        raise ConfigError(
            f"the name of node {node} resolves to {found}, where other nodes cannot reach it; set PRETRAIN_INTERFACE to the "
            "network interface between the nodes"
        )
    return found


def interfaces_meant(pattern: str, names: Sequence[str]) -> list[str]:
    """Those of a machine's interfaces that are meant, as NCCL_SOCKET_IFNAME has it; one that is named in full first.

    Beginnings of names with commas between them; behind `=` whole names, behind `^` those that are not meant.
    """
    unwanted, words = pattern.startswith("^"), pattern.lstrip("^=").split(",")
    exact = pattern.lstrip("^").startswith("=")
    hit = {name for name in names for word in words if name == word or (not exact and name.startswith(word))}
    found = [name for name in names if name not in hit and name != "lo"] if unwanted else [n for n in names if n in hit]
    return sorted(found, key=lambda name: name not in words)


def start_held_to(address: str, command: Sequence[str], **popen: Any) -> "subprocess.Popen[Any]":
    """Starts a command whose servers listen on one IPv4 address where they would on all, or where they choose one themselves.

    Args:
        address: of this machine.
        command: to run.
        popen: further arguments of subprocess.Popen.

    Raises:
        CannotHold: the kernel does not serve; the command was not started.
    """
    probe = _start(address, [sys.executable, "-ISc", _PROBE, address], stderr=subprocess.DEVNULL)
    if probe.wait() != 0:
        raise CannotHold("its kernel (Linux 5.6 is needed) or container lets no process bind another's socket")
    return _start(address, command, **popen)


def _start(address: str, command: Sequence[str], **popen: Any) -> "subprocess.Popen[Any]":
    calls = _CALLS.get(platform.machine())
    if calls is None or not sys.platform.startswith("linux"):
        raise CannotHold(f"{sys.platform} on {platform.machine()} has no call for it that is known here")
    ours, theirs = socket.socketpair()
    with closing(ours), closing(theirs):

        def ask_us() -> None:
            """In the new process, before the command."""
            socket.send_fds(theirs, [b"!"], [_listener(calls)])

        try:
            process = subprocess.Popen(command, preexec_fn=ask_us, **popen)
        except subprocess.SubprocessError:
            raise CannotHold("its kernel (Linux 5.6 is needed) or container refuses a seccomp listener") from None
        _, (listener, *_), _, _ = socket.recv_fds(ours, 1, 1)
    os.set_inheritable(listener, False)
    threading.Thread(target=_answer, args=(listener, address), name="own-address", daemon=True).start()
    return process


def _listener(calls: _Calls) -> int:
    """Filters this process's calls of bind; the file descriptor by which they are asked for. Raises OSError."""
    program = b"".join((
        _instruction(_LOAD, 4), _instruction(_EQUAL, calls.architecture, otherwise=3),
        _instruction(_LOAD, 0), _instruction(_EQUAL, calls.bind, otherwise=1),
        _instruction(_RETURN, _ASK), _instruction(_RETURN, _ALLOW),
    ))  # fmt: skip
    text = ctypes.create_string_buffer(program, len(program))
    described = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(text))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    return _checked(libc.syscall(calls.seccomp, _SET_MODE_FILTER, _NEW_LISTENER, described))


def _instruction(code: int, value: int, otherwise: int = 0) -> bytes:
    """One of the classic packet filter's; `otherwise` are the instructions that are skipped where a comparison fails."""
    return struct.pack("=HBBI", code, 0, otherwise, value)


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def _answer(listener: int, address: str) -> None:
    """Answers until the command and all its children have ended."""
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    try:
        while all(event & select.POLLIN for _, event in poll.poll()):
            asked = bytearray(_ASKED_BYTES)
            with suppress(OSError):  # the caller was killed meanwhile
                fcntl.ioctl(listener, _RECEIVE, asked)
                number, thread = struct.unpack_from("=QI", asked)
                handle, place, size = struct.unpack_from("=QQQ", asked, 32)
                error = _bind(thread, handle, place, size, address)
                answer = (0, 0, _CONTINUE) if error is None else (0, -error, 0)
                fcntl.ioctl(listener, _SEND, _ANSWER.pack(number, *answer))
    finally:
        os.close(listener)


def _bind(thread: int, handle: int, place: int, size: int, address: str) -> int | None:
    """Binds another process's socket in its stead: 0 or the error number; None where it shall do so itself."""
    try:
        with Path(f"/proc/{thread}/mem").open("rb", buffering=0) as memory:
            memory.seek(place)
            port = port_on_all_addresses(memory.read(min(size, _IPV6_BYTES)))
        if port is None:
            return None
        with closing(_socket_of(thread, handle)) as found:
            mapped = address if found.family == socket.AF_INET else f"::ffff:{address}"
            found.bind((mapped, port))
    except OSError as error:
        return error.errno or errno.EACCES
    return 0


def port_on_all_addresses(name: bytes) -> int | None:
    """The port of a socket's name (sockaddr_in, sockaddr_in6) that stands for all addresses; None for any other name."""
    if len(name) < _IPV4_BYTES:
        return None
    family, port = struct.unpack("=H", name[:2])[0], struct.unpack("!H", name[2:4])[0]
    if family == socket.AF_INET:
        found = ipaddress.ip_address(name[4:8])
    elif family == socket.AF_INET6 and len(name) >= _IPV6_BYTES:
        found = ipaddress.IPv6Address(name[8:24])
        found = found.ipv4_mapped or found
    else:
        return None
    return port if found.is_unspecified else None


def _socket_of(thread: int, handle: int) -> socket.socket:
    """A socket of another process as one of ours. Raises OSError."""
    status = Path(f"/proc/{thread}/status").read_text()
    group = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("Tgid:"))
    libc = ctypes.CDLL(None, use_errno=True)
    process = _checked(libc.syscall(_PIDFD_OPEN, group, 0))
    try:
        return socket.socket(fileno=_checked(libc.syscall(_PIDFD_GETFD, process, handle, 0)))
    finally:
        os.close(process)

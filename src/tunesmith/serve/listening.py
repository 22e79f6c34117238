"""The socket that the gateway listens on, taken before any model is loaded."""

from __future__ import annotations

import errno
import ipaddress
import socket
from dataclasses import dataclass

from tunesmith.errors import BusyError, ConfigError, EnvironmentProblem

__all__ = ["Listener", "listen"]

BACKLOG = 256
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Listener:
    """An open socket.

    Attributes:
        socket: listening; connections queue in it until the gateway takes them.
        base_url: for OpenAI's clients, with `/v1`.
        hosts: names that the Host header may have; None when it is open to a network.
        warnings: what the user should know about it.
    """

    socket: socket.socket
    base_url: str
    hosts: frozenset[str] | None
    warnings: tuple[str, ...]


def listen(host: str, port: int) -> Listener:
    """Open the socket.

    Raises:
        BusyError: another program listens there.
        ConfigError: no such address on this machine.
        EnvironmentProblem: the port needs rights that this user lacks.
    """
    family, address = _resolve(host, port)
    opened = socket.socket(family, socket.SOCK_STREAM)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
        opened.listen(BACKLOG)
        opened.setblocking(False)
    except OSError as error:
        opened.close()
        raise _explained(error, host, port) from error
    bound, taken = str(opened.getsockname()[0]), int(opened.getsockname()[1])
    shown = _reachable(bound)
    url = f"http://[{shown}]:{taken}/v1" if ":" in shown else f"http://{shown}:{taken}/v1"
    if ipaddress.ip_address(bound).is_loopback:
        return Listener(opened, url, frozenset({*LOOPBACK_NAMES, host.lower(), bound}), ())
    warning = (
        f"{host} is open to the network: keys and texts travel unencrypted, and the Host header "
        "is not checked; put a proxy with TLS in front, or set serve.host to 127.0.0.1"
    )
    return Listener(opened, url, None, (warning,))


def _resolve(host: str, port: int) -> tuple[socket.AddressFamily, tuple[str, int]]:
    if not host.strip():
        raise ConfigError("serve.host is empty", fix="set it to 127.0.0.1")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f"serve.host = {host!r} is no address of this machine",
            why=str(error),
            fix="set it to 127.0.0.1, or to an address that `ip addr` lists",
        ) from error
    family, _, _, _, address = found[0]
    return family, (str(address[0]), int(address[1]))


def _reachable(address: str) -> str:
    """An address that a client on this machine can use."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)


def _explained(error: OSError, host: str, port: int) -> Exception:
    if error.errno == errno.EADDRINUSE:
        return BusyError(
            f"port {port} of {host} is taken",
            why="another program listens on it",
            fix="stop that program, or set serve.port to another one (0 lets the system choose)",
        )
    if error.errno == errno.EACCES:
        return EnvironmentProblem(
            f"port {port} of {host} may not be used",
            why="ports below 1024 need more rights than this user has",
            fix="set serve.port to one above 1023",
        )
    return ConfigError(
        f"cannot listen on port {port} of {host}: {error.strerror}",
        fix="set serve.host to 127.0.0.1, or to an address that `ip addr` lists",
    )

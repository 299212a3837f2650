"""Asking a tracker: which devices there are, and for one of them. Standard library only.

TVM's own `TrackerSession` speaks the same few JSON messages, but waits without limit for each
answer, does not tell which device it was given, and takes seconds to import.
"""

from __future__ import annotations

import contextlib
import json
import re
import select
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tvm_mobilenet.errors import InputError

ANSWER_SECONDS = 10.0  # how long a tracker may take for an answer that needs no device
_GONE_SECONDS = 10.0  # a key without a device for so long has lost its devices
_MAGIC = struct.pack("<i", 0x2F271)  # this and the codes: tvm/rpc/base.py
_SUCCESS, _REQUEST, _SUMMARY = 0, 4, 6
_PRIORITY = 1
_KEY = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True)
class Address:
    """A machine and a TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> Address:
        """`HOST:PORT`, with an IPv6 address in brackets; InputError for anything else."""
        host, _, port = text.rpartition(":")
        host = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
        valid = host and (":" not in host or text.startswith("["))
        if not valid or not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65535:
            raise InputError(f"{text!r} is not HOST:PORT, such as 127.0.0.1:9190")
        return cls(host, int(port))


@dataclass(frozen=True)
class Devices:
    """The devices of one key. `pending`: requests that wait for one of them."""

    key: str
    addresses: tuple[Address, ...]
    free: int
    pending: int

    @property
    def busy(self) -> int:
        """How many are in somebody's hands."""
        return max(0, len(self.addresses) - self.free)


@dataclass(frozen=True)
class Grant:
    """A device to connect to now: for a few seconds its server takes this `password` alone."""

    address: Address
    password: str


def check_key(key: str) -> str:
    """The key, if it can be one; InputError otherwise."""
    if not _KEY.fullmatch(key):
        raise InputError(
            f"{key!r} is not a device key: at most 64 letters, digits, '.', '_' and '-'"
        )
    return key


@dataclass(frozen=True)
class Tracker:
    """A tracker's client. Every method raises InputError when it is not reached."""

    address: Address

    def devices(self) -> tuple[Devices, ...]:
        """The registered devices by key, and keys that somebody waits for."""
        with self._connection() as connection:
            _send(connection, [_SUMMARY])
            summary = self._answer(connection)
        servers: dict[str, list[Address]] = {}
        for server in summary["server_info"]:
            key = server["key"].removeprefix("server:")
            servers.setdefault(key, []).append(Address(server["addr"][0], server["addr"][1]))
        queues = summary["queue_info"]
        return tuple(
            Devices(
                key,
                tuple(sorted(servers.get(key, ()), key=str)),
                queues.get(key, {}).get("free", 0),
                queues.get(key, {}).get("pending", 0),
            )
            for key in sorted(servers.keys() | queues.keys())
            if key in servers or queues[key]["pending"]
        )

    def of_key(self, key: str) -> tuple[Address, ...]:
        """The devices of one key; InputError when there is none."""
        known = {devices.key: devices.addresses for devices in self.devices() if devices.addresses}
        if key not in known:
            others = f"it has {', '.join(known)}" if known else "it has no device at all"
            raise InputError(f"tracker {self.address} has no device of key '{key}': {others}")
        return known[key]

    def request(self, key: str, *, wait_seconds: float) -> Grant:
        """Wait for a free device of that key.

        Raises InputError when all of its devices have gone, or none is free within `wait_seconds`.
        """
        start = seen = time.monotonic()
        with self._connection() as connection:
            _send(connection, [_REQUEST, key, "", _PRIORITY])
            while not select.select([connection], [], [], 1.0)[0]:
                now = time.monotonic()
                if any(devices.key == key and devices.addresses for devices in self.devices()):
                    seen = now
                if now - seen > _GONE_SECONDS:
                    raise InputError(f"tracker {self.address} has no device of key '{key}' left")
                if now - start > wait_seconds:
                    raise InputError(
                        f"no device of key '{key}' became free within {wait_seconds:.0f} s; "
                        "'tvm-mobilenet rpc devices' shows who waits"
                    )
            host, port, password = self._answer(connection)
        return Grant(Address(host, port), password)

    @contextlib.contextmanager
    def _connection(self) -> Iterator[socket.socket]:
        where = (self.address.host, self.address.port)
        try:
            with socket.create_connection(where, timeout=ANSWER_SECONDS) as connection:
                connection.sendall(_MAGIC)
                if _receive(connection, len(_MAGIC)) != _MAGIC:
                    raise InputError(f"what listens at {self.address} is not a TVM tracker")
                yield connection
        except OSError as error:  # refused, unknown host, no answer in time, connection closed
            raise InputError(
                f"tracker {self.address} is not reached ({error.strerror or error}); start one "
                "there with 'tvm-mobilenet rpc tracker', or tunnel to it"
            ) from error

    def _answer(self, connection: socket.socket) -> Any:
        (size,) = struct.unpack("<i", _receive(connection, 4))
        code, value = json.loads(_receive(connection, size))
        if code != _SUCCESS:
            raise InputError(f"tracker {self.address} refuses: {value}")
        return value


def _send(connection: socket.socket, message: Sequence[Any]) -> None:
    data = json.dumps(message).encode()
    connection.sendall(struct.pack("<i", len(data)) + data)


def _receive(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise ConnectionError("it closed the connection")
        data += part
    return data

"""The tracker's client against a tracker that is scripted here."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tvm_mobilenet.errors import InputError
from tvm_mobilenet.remote import tracker as tracker_module
from tvm_mobilenet.remote.tracker import Address, Tracker, check_key

MAGIC = struct.pack("<i", 0x2F271)
SUMMARY = 6


def packed(value: Any) -> bytes:
    data = json.dumps(value).encode()
    return struct.pack("<i", len(data)) + data


def server(key: str, port: int, host: str = "10.0.0.2") -> dict[str, Any]:
    return {"key": f"server:{key}", "addr": [host, port]}


@pytest.fixture
def scripted() -> Iterator[Callable[..., Tracker]]:
    """A tracker on loopback that answers by `reply(message) -> bytes | None` (None: nothing)."""
    listener = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []
    held: list[socket.socket] = []

    def start(reply: Callable[[Any], bytes | None], greeting: bytes | None = MAGIC) -> Tracker:
        def speak(connection: socket.socket) -> None:
            with connection.makefile("rb") as stream:
                stream.read(4)
                if greeting is not None:
                    connection.sendall(greeting)
                while header := stream.read(4):
                    answer = reply(json.loads(stream.read(struct.unpack("<i", header)[0])))
                    if answer is not None:
                        connection.sendall(answer)

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                held.append(connection)
                thread = threading.Thread(target=speak, args=(connection,), daemon=True)
                threads.append(thread)
                thread.start()

        threading.Thread(target=serve, daemon=True).start()
        return Tracker(Address(*listener.getsockname()))

    yield start
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    for connection in held:
        connection.close()


@pytest.mark.parametrize(
    ("text", "host", "port", "shown"),
    [
        ("127.0.0.1:9190", "127.0.0.1", 9190, "127.0.0.1:9190"),
        ("board.local:1", "board.local", 1, "board.local:1"),
        ("[::1]:65535", "::1", 65535, "[::1]:65535"),
    ],
)
def test_address_is_read_and_written(text: str, host: str, port: int, shown: str) -> None:
    address = Address.parse(text)
    assert (address.host, address.port, str(address)) == (host, port, shown)


@pytest.mark.parametrize(
    "text", ["", "host", ":9190", "host:", "host:0", "host:65536", "host:x", "host:-1", "::1:9190"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="is not HOST:PORT"):
        Address.parse(text)


@pytest.mark.parametrize("key", ["", "a b", "a:b", "a\n", "x" * 65, "a/b"])
def test_what_is_no_key_is_refused(key: str) -> None:
    with pytest.raises(InputError, match="is not a device key"):
        check_key(key)
    assert check_key("rpi-4.b_1") == "rpi-4.b_1"


def test_devices_by_key_with_who_is_free_and_who_waits(scripted: Callable[..., Tracker]) -> None:
    summary = {
        "server_info": [server("rpi4", 9091), server("x", 1), server("rpi4", 9090)],
        "queue_info": {
            "rpi4": {"free": 1, "pending": 0},
            "x": {"free": 0, "pending": 2},
            "gone": {"free": 0, "pending": 0},
            "wanted": {"free": 0, "pending": 1},
        },
    }
    rpi4, wanted, other = scripted(lambda message: packed([0, summary])).devices()
    assert (rpi4.key, rpi4.free, rpi4.busy, rpi4.pending) == ("rpi4", 1, 1, 0)
    assert [str(address) for address in rpi4.addresses] == ["10.0.0.2:9090", "10.0.0.2:9091"]
    assert (wanted.key, wanted.addresses, wanted.busy, wanted.pending) == ("wanted", (), 0, 1)
    assert (other.key, other.free, other.busy, other.pending) == ("x", 0, 1, 2)


def test_a_registered_server_that_never_asked_to_serve_is_listed(
    scripted: Callable[..., Tracker],
) -> None:
    summary = {"server_info": [server("new", 9090)], "queue_info": {}}
    (new,) = scripted(lambda message: packed([0, summary])).devices()
    assert (new.key, len(new.addresses), new.free) == ("new", 1, 0)


def test_an_unknown_key_names_the_known_ones(scripted: Callable[..., Tracker]) -> None:
    state: dict[str, Any] = {"server_info": [server("rpi4", 9090)], "queue_info": {}}
    tracker = scripted(lambda message: packed([0, state]))
    assert [str(address) for address in tracker.of_key("rpi4")] == ["10.0.0.2:9090"]
    with pytest.raises(InputError, match="no device of key 'rpi5': it has rpi4"):
        tracker.of_key("rpi5")
    state["server_info"] = []
    with pytest.raises(InputError, match="no device at all"):
        tracker.of_key("rpi4")


def test_a_granted_device(scripted: Callable[..., Tracker]) -> None:
    asked: list[Any] = []

    def reply(message: Any) -> bytes:
        asked.append(message)
        return packed([0, ["10.0.0.2", 9090, "rpi4:0.5"]])

    grant = scripted(reply).request("rpi4", wait_seconds=5)
    assert (str(grant.address), grant.password) == ("10.0.0.2:9090", "rpi4:0.5")
    assert asked == [[4, "rpi4", "", 1]]


@pytest.mark.parametrize(
    ("registered", "message"),
    [([], "no device of key 'rpi4' left"), ([server("rpi4", 9090)], "became free within 0 s")],
)
def test_waiting_for_a_device_ends(
    scripted: Callable[..., Tracker],
    monkeypatch: pytest.MonkeyPatch,
    registered: list[Any],
    message: str,
) -> None:
    summary = {"server_info": registered, "queue_info": {}}
    monkeypatch.setattr(tracker_module, "_GONE_SECONDS", 0.5 if not registered else 60.0)
    tracker = scripted(lambda asked: packed([0, summary]) if asked[0] == SUMMARY else None)
    with pytest.raises(InputError, match=message):
        tracker.request("rpi4", wait_seconds=60.0 if not registered else 0.1)


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = Address(*listener.getsockname())
    with pytest.raises(InputError, match=r"is not reached \(Connection refused\); start one"):
        Tracker(address).devices()


def test_a_host_that_does_not_exist() -> None:
    with pytest.raises(InputError, match=r"tracker no\.such\.host\.invalid:9190 is not reached"):
        Tracker(Address("no.such.host.invalid", 9190)).devices()


@pytest.mark.parametrize(
    ("greeting", "message"),
    [(b"HTTP", "is not a TVM tracker"), (None, r"is not reached \(timed out\)")],
)
def test_something_else_listens(
    scripted: Callable[..., Tracker],
    monkeypatch: pytest.MonkeyPatch,
    greeting: bytes | None,
    message: str,
) -> None:
    monkeypatch.setattr(tracker_module, "ANSWER_SECONDS", 0.2 if greeting is None else 20.0)
    with pytest.raises(InputError, match=message):
        scripted(lambda asked: None, greeting).devices()


def test_a_tracker_that_refuses_or_closes(scripted: Callable[..., Tracker]) -> None:
    with pytest.raises(InputError, match="refuses: busy"):
        scripted(lambda asked: packed([-1, "busy"])).devices()

"""Listening sockets, and the servers' own life: start, survive, stop."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tvm_mobilenet.errors import InputError
from tvm_mobilenet.remote import serve
from tvm_mobilenet.remote.tracker import Address, Tracker


def test_a_free_port_of_loopback_is_taken() -> None:
    with serve.listen("127.0.0.1", 0, socket.socket) as listener:
        where = serve.bound(listener)
        assert where.host == "127.0.0.1" and where.port > 0
        with pytest.raises(InputError, match=f"port {where.port} of 127.0.0.1 is in use; choose"):
            serve.listen(where.host, where.port, socket.socket)


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid"])
def test_an_address_that_is_not_this_machines_is_refused(host: str) -> None:
    with pytest.raises(InputError, match=f"cannot listen at {host}:0"):
        serve.listen(host, 0, socket.socket)


def test_a_connection_that_says_nothing_is_turned_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "_HANDSHAKE_SECONDS", 0.1)
    with serve.listen("127.0.0.1", 0, serve.SessionListener) as listener:
        where = listener.getsockname()
        with socket.create_connection(where) as silent:
            with pytest.raises(OSError):
                listener.accept()
            assert silent.recv(1) == b""
        with socket.create_connection(where):
            pass  # closed before a word
        with pytest.raises(OSError):
            listener.accept()
        with socket.create_connection(where) as speaking:
            speaking.sendall(b"hello")
            connection, _ = listener.accept()
            with connection:
                assert connection.gettimeout() is None
                assert connection.recv(5) == b"hello"  # looked at, not taken


@pytest.mark.slow
@pytest.mark.rpc
def test_tracker_and_server_warn_list_and_stop(start: Callable[..., Any]) -> None:
    tracker = start("tracker")
    server = start("server", "--rpc-tracker", tracker.address, "--rpc-key", "life")
    for running in (tracker, server):
        assert running.address.startswith("127.0.0.1:")
        (warning,) = (line for line in running.log.read_text().splitlines() if "warning" in line)
        assert "no authentication" in warning and "ssh -N -L" in warning
    client = Tracker(Address.parse(tracker.address))
    while not client.devices():
        pass
    assert [str(address) for address in client.of_key("life")] == [server.address]
    for running, number in ((server, signal.SIGINT), (tracker, signal.SIGTERM)):
        assert running.stop(number) == 0
        assert running.log.read_text().splitlines()[-1].endswith(f"stopped by {number.name}")
        assert [entry for entry in running.log.parent.iterdir() if entry.is_dir()] == []
    with pytest.raises(InputError, match="is not reached"):
        client.devices()


@pytest.mark.slow
@pytest.mark.rpc
def test_a_stopped_server_ends_its_session(
    start: Callable[..., Any],
) -> None:
    import psutil

    server = start("server")
    host, port = server.address.rsplit(":", 1)
    with socket.create_connection((host, int(port))) as client:
        client.sendall((0xFF271).to_bytes(4, "little") + (7).to_bytes(4, "little") + b"client:")
        assert client.recv(4) == (0xFF271).to_bytes(4, "little")
        assert client.recv(11, socket.MSG_WAITALL)[4:] == b"server:"  # a session is being made
        children: list[psutil.Process] = []
        while not children:
            children = psutil.Process(server.process.pid).children()
        assert server.stop() == 0
        client.settimeout(60)
        assert client.recv(1) == b""
        assert not any(Path(f"/proc/{child.pid}").exists() for child in children)

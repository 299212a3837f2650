"""`rpc`: arguments, refusals and what `devices` prints; the servers' life is in tests/remote."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest

from tvm_mobilenet.cli import main
from tvm_mobilenet.remote.tracker import Address, Devices, Tracker


@pytest.fixture
def free_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    yield port


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Address, tuple[Devices, ...]]]:
    """What trackers answer; the addresses that were asked come in front."""
    where = tuple(Address("10.0.0.2", port) for port in (9090, 9091))
    answer = (Devices("rpi4", where, 1, 0), Devices("wanted", (), 0, 2))
    asked: list[tuple[Address, tuple[Devices, ...]]] = []

    def devices(self: Tracker) -> tuple[Devices, ...]:
        asked.append((self.address, answer))
        return answer

    monkeypatch.setattr(Tracker, "devices", devices)
    return asked


def test_devices_as_a_table(
    known: list[tuple[Address, object]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["rpc", "devices"]) == 0
    header, first, second = (line.split() for line in capsys.readouterr().out.splitlines())
    assert header == ["KEY", "DEVICES", "FREE", "BUSY", "PENDING", "ADDRESSES"]
    assert first == ["rpi4", "2", "1", "1", "0", "10.0.0.2:9090", "10.0.0.2:9091"]
    assert second == ["wanted", "0", "0", "0", "2"]
    assert str(known[0][0]) == "127.0.0.1:9190"


def test_devices_as_json_of_the_tracker_that_is_asked(
    known: list[tuple[Address, object]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["rpc", "devices", "--rpc-tracker", "[::1]:7", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["schema_version"], document["kind"]) == (1, "rpc-devices")
    assert document["tracker"] == "[::1]:7"
    assert document["keys"][0] == {
        "key": "rpi4",
        "devices": ["10.0.0.2:9090", "10.0.0.2:9091"],
        "free": 1,
        "busy": 1,
        "pending": 0,
    }


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["rpc"], 2, "the following arguments are required: action"),
        (["rpc", "proxy"], 2, "invalid choice: 'proxy'"),
        (["rpc", "tracker", "--port", "65536"], 2, "is not a port number"),
        (["rpc", "server", "--rpc-tracker", "127.0.0.1:1"], 2, "needs --rpc-key KEY"),
        (["rpc", "package"], 2, "needs -o DIR"),
        (["rpc", "server", "--rpc-tracker", "here", "--rpc-key", "x"], 3, "is not HOST:PORT"),
        (["rpc", "server", "--port", "0", "--rpc-key", "a b"], 3, "is not a device key"),
        (["rpc", "tracker", "--host", "192.0.2.1"], 3, "cannot listen at 192.0.2.1:9190"),
        (["rpc", "devices", "--rpc-tracker", "no.such.host.invalid:1"], 3, "is not reached"),
    ],
)
def test_refusals_are_one_line(
    arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert message in line


def test_a_busy_port_and_an_unreachable_tracker(
    free_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", free_port)):
        assert main(["rpc", "tracker", "--port", str(free_port)]) == 3
    assert f"port {free_port} of 127.0.0.1 is in use" in capsys.readouterr().err
    where = ["--rpc-tracker", f"127.0.0.1:{free_port}"]
    assert main(["rpc", "devices", *where]) == 3
    assert "is not reached (Connection refused)" in capsys.readouterr().err
    assert main(["rpc", "server", "--port", "0", *where, "--rpc-key", "x"]) == 3
    assert "is not reached (Connection refused)" in capsys.readouterr().err


def test_a_server_that_its_clients_will_not_reach_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tvm_mobilenet.errors import InputError

    def devices(self: Tracker) -> tuple[Devices, ...]:
        raise InputError("far away")

    monkeypatch.setattr(Tracker, "devices", devices)
    far = ["rpc", "server", "--port", "0", "--rpc-tracker", "192.0.2.1:9190", "--rpc-key", "x"]
    assert main(far) == 3
    assert "warning: listening at 127.0.0.1 alone" in capsys.readouterr().err
    assert main([*far, "--advertise", "192.0.2.7"]) == 3
    assert "warning" not in capsys.readouterr().err

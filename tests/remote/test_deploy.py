"""A bundle on a server of TVM's runtime: proven, timed, removed; and what is refused."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tvm_mobilenet as tm
from tvm_mobilenet.errors import InputError, NothingMeasuredError, UsageError
from tvm_mobilenet.remote.deploy import Deployment

pytestmark = [pytest.mark.slow, pytest.mark.rpc]
KEY = "board"


@pytest.fixture(scope="module")
def tracker(start: Callable[..., Any]) -> Any:
    return start("tracker")


@pytest.fixture(scope="module")
def server(start: Callable[..., Any], tracker: Any) -> Any:
    running = start("server", "--rpc-tracker", tracker.address, "--rpc-key", KEY)
    from tvm_mobilenet.remote.tracker import Address, Tracker

    while not Tracker(Address.parse(tracker.address)).devices():
        pass
    return running


def folders(server: Any) -> list[Path]:
    """What sessions have left in the server's temporary folder."""
    return [entry for entry in server.log.parent.iterdir() if entry.is_dir()]


def test_a_bundle_is_proven_and_timed_over_the_tracker(
    bundle: Path, tracker: Any, server: Any
) -> None:
    said: list[str] = []
    result: Deployment = tm.deploy(  # type: ignore[operator]
        bundle, tracker=tracker.address, key=KEY, threads=1, runs=20, progress=said.append
    )
    assert result.parity.passed
    assert result.parity.samples == 3
    assert [(verdict.output, verdict.inputs) for verdict in result.parity.outputs] == [
        ("scores", "samples"),
        ("mean", "samples"),
        ("scores", "batch 4"),
        ("mean", "batch 4"),
    ]
    assert [(one.batch, len(one.seconds), one.passed) for one in result.timings] == [
        (1, 20, True),
        (4, 20, True),
    ]
    assert result.device == server.address
    assert (result.key, result.threads, result.target) == (KEY, 1, "native")
    assert len(result.seconds) == 20
    assert 0 < min(result.seconds) <= result.median_seconds <= result.p95_seconds < 1
    assert server.address in said[0]
    server_is_idle(tracker)
    assert folders(server) == []


def server_is_idle(tracker: Any) -> None:
    from tvm_mobilenet.remote.tracker import Address, Tracker

    client = Tracker(Address.parse(tracker.address))
    while not (devices := client.devices()) or devices[0].busy:  # none: it is about to come back
        pass


def test_the_command_prints_a_table_or_json(
    bundle: Path, tracker: Any, server: Any, cli: Callable[..., Any]
) -> None:
    where = ("--rpc-tracker", tracker.address, "--rpc-key", KEY, "--runs", 7)
    table = cli("deploy", bundle, *where)
    assert table.returncode == 0, table.stderr
    header, *rows, _, verdict = table.stdout.splitlines()
    assert header.split()[:4] == ["DEVICE", "TARGET", "THREADS", "BATCH"]
    assert [row.split()[3] for row in rows] == ["1", "4"]
    for row in rows:
        assert row.split()[0] == server.address and row.split()[-2:] == ["7", "passed"]
    assert verdict.startswith("parity passed")
    answer = cli("deploy", bundle, *where, "--json")
    assert answer.returncode == 0, answer.stderr
    document = json.loads(answer.stdout)
    assert (document["schema_version"], document["kind"]) == (1, "deploy")
    assert document["parity"]["state"] == "passed"
    assert document["latency_seconds"]["runs"] == 7
    assert [(one["batch"], one["passed"]) for one in document["batches"]] == [(1, True), (4, True)]
    assert document["batches"][0]["latency_seconds"] == document["latency_seconds"]
    for one in document["batches"]:
        assert 0 < one["latency_seconds"]["min"] <= one["latency_seconds"]["median"]
    listed = json.loads(cli("rpc", "devices", "--rpc-tracker", tracker.address, "--json").stdout)
    assert [(key["key"], key["devices"]) for key in listed["keys"]] == [(KEY, [server.address])]


def test_wrong_numbers_fail_with_their_exit_code(
    bundle: Path,
    resealed: Callable[[str, bytes], Path],
    tracker: Any,
    server: Any,
    cli: Callable[..., Any],
) -> None:
    with np.load(bundle / "samples.npz") as file:
        arrays = {name: file[name] for name in file.files}
    for kind in ("float32", "float64"):
        arrays[f"1.{kind}.0"] = arrays[f"1.{kind}.0"] + 1e-3
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    wrong = resealed("samples.npz", stream.getvalue())
    answer = cli("deploy", wrong, "--rpc-tracker", tracker.address, "--rpc-key", KEY, "--runs", 1)
    assert answer.returncode == 5
    assert "FAILED" in answer.stdout
    assert f"on {server.address}: parity failed: output 'scores'" in answer.stderr


def test_a_library_that_the_device_cannot_load(
    resealed: Callable[[str, bytes], Path], tracker: Any, server: Any, cli: Callable[..., Any]
) -> None:
    broken = resealed("model.so", b"\x7fELF no library")
    answer = cli("deploy", broken, "--rpc-tracker", tracker.address, "--rpc-key", KEY)
    assert answer.returncode == 6
    assert answer.stdout == ""
    (error,) = (line for line in answer.stderr.splitlines() if "error:" in line)
    assert server.address in error and "built for native" in error


def test_a_device_that_takes_too_long(bundle: Path, tracker: Any, server: Any) -> None:
    with pytest.raises(NothingMeasuredError, match="stopped after 2 s"):
        tm.deploy(  # type: ignore[operator]
            bundle, tracker=tracker.address, key=KEY, runs=50_000_000, timeout_sec=2
        )


@pytest.fixture
def stock_server(tmp_path: Path) -> Iterator[str]:
    """TVM's own server, as a board has it that knows nothing of this package."""
    command = [sys.executable, "-m", "tvm.exec.rpc_server", "--host", "127.0.0.1", "--key", KEY]
    log = tmp_path / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, "--port", "39000", "--port-end", "39999"],
            stderr=output,
            start_new_session=True,  # it leaves a child behind when it is killed
            env={**os.environ, "TVM_USE_RUNTIME_LIB": "1"},
        )
    try:
        while not (found := re.search(r"bind to (\S+)", log.read_text())):
            assert process.poll() is None, log.read_text()
        yield found[1]
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=60)


def test_tvms_own_server_without_a_tracker_is_enough(
    bundle: Path, stock_server: str, cli: Callable[..., Any]
) -> None:
    result = tm.deploy(bundle, rpc=stock_server, key=KEY, runs=3)  # type: ignore[operator]
    assert result.parity.passed
    assert result.device == stock_server
    answer = cli("deploy", bundle, "--rpc", stock_server, "--rpc-key", "other")
    assert answer.returncode == 6
    assert "connection lost" in answer.stderr


def test_nobody_there(bundle: Path, tracker: Any, server: Any) -> None:
    with pytest.raises(InputError, match=r"no device of key 'other': it has board"):
        tm.deploy(bundle, tracker=tracker.address, key="other")  # type: ignore[operator]
    with pytest.raises(
        NothingMeasuredError, match=r"127\.0\.0\.1:1: connection lost \(no RPC server"
    ):
        tm.deploy(bundle, rpc="127.0.0.1:1")  # type: ignore[operator]
    with pytest.raises(UsageError, match="either a tracker and a key"):
        tm.deploy(bundle, rpc="127.0.0.1:1", tracker=tracker.address)  # type: ignore[operator]
    with pytest.raises(InputError, match="threads must be at least 1"):
        tm.deploy(bundle, rpc="127.0.0.1:1", threads=0)  # type: ignore[operator]

"""A bundle profiled over RPC, on a server on loopback."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tvm_mobilenet.errors import NothingMeasuredError

pytestmark = [pytest.mark.slow, pytest.mark.rpc]


def test_operators_are_timed_on_the_device(
    bundle: Path, start: Callable[..., Any], cli: Callable[..., Any]
) -> None:
    server = start("server", "--rpc-key", "profiled")
    result = cli(
        "profile", bundle, "--rpc", server.address, "--rpc-key", "profiled", "--runs", 5, "--json"
    )
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    operators = json.loads((bundle / "manifest.json").read_text())["operators"]
    assert len(document["layers"]) == len(operators)
    assert len(document["nanoseconds"]["operators"][0]) == 5
    assert document["layers"][0]["first_us"] is None and document["phases"]["first_ms"] is None
    assert document["reconciliation"]["entry_us"] is None
    assert sum(layer["share"] for layer in document["layers"]) == pytest.approx(1)
    assert server.address in document["cpu"]
    server.stop()


def test_no_server_is_told(bundle: Path) -> None:
    from tvm_mobilenet.profiling.remote import Device, profile_remotely

    with pytest.raises(NothingMeasuredError, match="the bundle was built for native"):
        profile_remotely(bundle, Device(rpc="127.0.0.1:9"), runs=5)

"""A bundle's operators compared on another machine, over RPC on loopback."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.rpc]


def test_every_operator_is_compared_on_the_device(
    bundle: Path, start: Callable[..., Any], cli: Callable[..., Any]
) -> None:
    server = start("server", "--rpc-key", "traced")
    model = bundle.parent / "small.onnx"
    asked = ("validate", bundle, "--model", model, "--per-layer", "--json", "--rpc-key", "traced")
    result = cli(*asked, "--rpc", server.address)
    assert result.returncode == 0, result.stderr
    parity = json.loads(result.stdout)["parity"]
    assert parity["state"] == "passed"
    assert server.address in parity["machine"]
    assert {row["output"] for row in parity["outputs"]} == {"scores", "mean"}
    rows = parity["layers"]["operators"]
    assert [row["tensor"] for row in rows] == ["active", "pooled", "scores"]
    assert all(row["isolated"]["passed"] and row["propagated"]["passed"] for row in rows)
    server.stop()
    assert cli(*asked, "--rpc", server.address).returncode == 6

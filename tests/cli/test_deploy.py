"""`deploy`: its arguments and refusals; deploying itself is in tests/remote."""

from __future__ import annotations

from pathlib import Path

import pytest

from tvm_mobilenet.cli import main


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "the following arguments are required: BUNDLE"),
        (["b"], 2, "say where: --rpc-tracker HOST:PORT --rpc-key KEY, or --rpc HOST:PORT"),
        (["b", "--rpc-tracker", "127.0.0.1:1"], 2, "say where"),
        (["b", "--rpc", "127.0.0.1:1", "--runs", "0"], 2, "is not a whole number of at least 1"),
        (["b", "--rpc", "127.0.0.1:1"], 3, "b: no such bundle"),
        (["empty", "--rpc", "127.0.0.1:1"], 3, "empty: not a bundle, it has no manifest.json"),
    ],
)
def test_refusals_are_one_line(
    arguments: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    assert main(["deploy", *arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert message in line


def test_the_tracker_and_key_come_from_the_environment_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TVM_MOBILENET_RPC_TRACKER", "127.0.0.1:1")
    monkeypatch.setenv("TVM_MOBILENET_RPC_KEY", "rpi4")
    assert main(["deploy", "no-bundle"]) == 3
    assert "no-bundle: no such bundle" in capsys.readouterr().err

"""The search behind a bundle's tuned operators, from records and measurements made for the test."""

from __future__ import annotations

import copy
import dataclasses
import json
import zipfile
from dataclasses import asdict
from pathlib import Path

import pytest

from tvm_mobilenet import targets
from tvm_mobilenet.errors import InputError
from tvm_mobilenet.profiling.tuning_curves import curves
from tvm_mobilenet.runtime import manifest
from tvm_mobilenet.tuning.records import (
    InNetwork,
    Record,
    Setting,
    directory_of,
    setting_of,
    update_records,
)
from tvm_mobilenet.tuning.store import Measured, MeasuredLog

SYMBOL = "pointwise_0"


@pytest.fixture
def bundle(small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The small bundle, as if a record had scheduled its pointwise layer."""
    contents = manifest.read(small_bundle)
    document = copy.deepcopy(dict(contents.document))
    [operator] = [o for o in document["operators"] if o["symbol"] == SYMBOL]
    operator["source"] = "tuned"
    tuned = dataclasses.replace(contents, document=document)
    monkeypatch.setattr(manifest, "read", lambda directory: tuned)
    return small_bundle


def _operator(bundle: Path) -> str:
    """The specification as the kernel's TVMScript shows it, read by other means than the code."""
    text = zipfile.ZipFile(bundle / manifest.KERNELS).read(f"{SYMBOL}.py").decode()
    quoted = text.split('"tvm_mobilenet.spec": ', 1)[1].split("})\n", 1)[0]
    return str(json.JSONDecoder().raw_decode(quoted)[0])


@pytest.fixture
def setting() -> Setting:
    target = targets.detect()
    return setting_of(target, target.cores, "here")


def _logs(tmp_path: Path, operator: str, setting: Setting, *us: float | None) -> Path:
    logs = tmp_path / "logs"
    place = logs / directory_of(targets.detect())
    when = "2026-01-01T00:00:00Z"
    inside = InNetwork("small", 1, 12e-6, 8e-6)
    times = (5e-6, (5e-6, 5e-6), 10e-6, inside, when, 0, "template")
    update_records(place, [Record(operator, "pointwise", {}, "print", setting, *times)])
    log = MeasuredLog(place)
    for time in us:
        seconds = None if time is None else 1e-6 * time
        spread = None if seconds is None else (seconds, seconds)
        error = None if seconds else "failed"
        about = (asdict(setting), seconds, spread, error, when, 0, "template")
        log.append([Measured(operator, "pointwise", {}, "print", *about)])
    return logs


def test_a_curve_is_the_best_so_far(bundle: Path, setting: Setting, tmp_path: Path) -> None:
    logs = _logs(tmp_path, _operator(bundle), setting, 10.0, 12.0, None, 5.0, 6.0)
    [curve] = curves(bundle, logs)
    assert curve.best == pytest.approx((10.0, 10.0, 5.0, 5.0))
    row = curve.row()
    assert (row["symbol"], row["trials"], row["network"]) == (SYMBOL, 4, "small")
    assert row["speed_up"] == pytest.approx(2.0) and row["network_speed_up"] == pytest.approx(1.5)


def test_what_was_measured_for_other_hardware_is_left_out(
    bundle: Path, setting: Setting, tmp_path: Path
) -> None:
    operator = _operator(bundle)
    logs = _logs(tmp_path, operator, setting, 10.0)
    other = asdict(setting) | {"fma_units": 7}
    entry = Measured(operator, "pointwise", {}, "p", other, 1e-6, (1e-6, 1e-6), None, "", 0, "t")
    MeasuredLog(logs / directory_of(targets.detect())).append([entry])
    assert curves(bundle, logs)[0].best == pytest.approx((10.0,))


def test_without_tuned_operators_there_is_nothing(small_bundle: Path, tmp_path: Path) -> None:
    assert curves(small_bundle, tmp_path / "none") == []


def test_no_such_directory_is_named(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such directory"):
        curves(bundle, tmp_path / "none")

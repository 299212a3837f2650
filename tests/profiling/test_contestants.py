from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tvm_mobilenet import targets
from tvm_mobilenet.errors import UsageError
from tvm_mobilenet.profiling import contest, contestants, peak
from tvm_mobilenet.profiling.contestants import OURS, PEAK, PEERS, Contestant, contestant
from tvm_mobilenet.profiling.process import ContestantProcess
from tvm_mobilenet.profiling.subject import Prepared, Subject, prepare

CPUS = (min(os.sched_getaffinity(0)),)
CONVERTS_SLOWLY = ("litert", "torch-compile")
INSTALLED = [
    pytest.param(name, marks=pytest.mark.slow if name in CONVERTS_SLOWLY else ())
    for name in PEERS
    if not contestant(name).missing()
]


def _outputs(name: str, prepared: Prepared, folder: Path) -> list[np.ndarray]:
    with ContestantProcess(CPUS, 1, folder / "convert.log") as process:
        artifact = process.call(
            "convert", timeout=300, name=name, source=prepared.source, folder=folder
        )
    with ContestantProcess(CPUS, 1, folder / "run.log") as process:
        process.call(
            "open", timeout=300, name=name, artifact=artifact, threads=1, inputs=prepared.inputs
        )
        outputs: list[np.ndarray] = process.call("outputs", timeout=300)
        return outputs


@pytest.mark.parametrize("name", INSTALLED)
def test_a_peer_computes_what_pytorch_computes(name: str, tiny: Prepared, tmp_path: Path) -> None:
    error = contest.relative_error(_outputs(name, tiny, tmp_path), tiny.expected)

    assert error < contest.TOLERANCE


@pytest.fixture(scope="module")
def squeeze_excite(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    subject = Subject("mobilenet_v3_small", alpha=0.25, resolution=32, classes=10)
    return prepare(subject, tmp_path_factory.mktemp("v3"), bundle=None, program=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", INSTALLED)
def test_a_peer_takes_a_pytorch_module_with_squeeze_excite(
    name: str, squeeze_excite: Prepared, tmp_path: Path
) -> None:
    outputs = _outputs(name, squeeze_excite, tmp_path)

    assert contest.relative_error(outputs, squeeze_excite.expected) < contest.TOLERANCE


def test_the_peak_runs_without_a_model(tmp_path: Path) -> None:
    here = targets.detect()
    library = peak.build(here, 1, tmp_path / "peak.so")
    arguments = peak.arguments(here, 1)
    with ContestantProcess(CPUS, 1, tmp_path / "log") as process:
        process.call("open", timeout=120, name=PEAK, artifact=library, threads=1, inputs=arguments)
        _, out = process.call("outputs", timeout=120)
    np.testing.assert_array_equal(out, 1.0)  # 1 * 0.5 + 0.5, again and again


@pytest.mark.parametrize("name", [OURS, PEAK, *PEERS])
def test_every_contestant_says_what_it_is(name: str) -> None:
    kind = contestant(name)

    assert kind.name == name
    assert kind.needs
    assert kind.install.startswith("pip install ")
    assert len(kind.settings) > 10


def test_missing_modules_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    kind: type[Contestant] = contestant("onnxruntime")
    monkeypatch.setattr(kind, "needs", ("onnxruntime", "not_installed_a", "not_installed_b"))

    assert kind.missing() == ("not_installed_a", "not_installed_b")


def test_an_unknown_peer_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="no peer is called 'openvin'; did you mean openvino"):
        contestants.check_peers(["torch", "openvin"])
    with pytest.raises(UsageError, match="known: onnxruntime, openvino"):
        contestants.check_peers(["fma-peak-x"])

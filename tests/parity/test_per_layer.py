"""Operators against the reference's tensors: names, layouts, both ways of feeding."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import parser

from tvm_mobilenet import frontend, targets
from tvm_mobilenet.cli import main
from tvm_mobilenet.compiler_pass.pipeline import compile_model
from tvm_mobilenet.deploy.emulate import RUNNER
from tvm_mobilenet.deploy.emulate_trace import traced
from tvm_mobilenet.deploy.library import export_library
from tvm_mobilenet.deploy.network import Network
from tvm_mobilenet.deploy.validate import operators_of, program_of
from tvm_mobilenet.errors import InputError
from tvm_mobilenet.parity import cuda_network, samples
from tvm_mobilenet.parity.adversarial import KINDS, adversarial
from tvm_mobilenet.parity.layout import from_blocked, to_blocked
from tvm_mobilenet.parity.per_layer import per_layer

# What TVM lowers stands between own operators; two outputs; a result that is read twice.
MIXED = """<ir_version: 10, opset_import: ["" : 18]>
mixed (float[1,3,9,9] picture) => (float[1,4] scores, float[1,24,4,4] pooled) {
    a = Conv<pads=[1,1,1,1]>(picture, w)
    b = Relu(a)
    c = Tanh(b)
    d = Erf(c)
    e = Add(d, b)
    pooled = MaxPool<kernel_shape=[2,2], strides=[2,2]>(e)
    f = GlobalAveragePool(e)
    g = Flatten(f)
    h = MatMul(g, v)
    scores = Softmax(h)
}"""


@given(st.integers(1, 2), st.integers(1, 40), st.integers(1, 4), st.sampled_from([0, 4, 8, 16]))
def test_blocked_layout_and_back(batch: int, channels: int, size: int, lanes: int) -> None:
    values = np.arange(batch * channels * size * 3.0).reshape(batch, channels, size, 3)
    flat = to_blocked(values, lanes)
    np.testing.assert_array_equal(from_blocked(flat, values.shape, lanes), values)
    if lanes:  # by the formula of `plain.blocked_index`
        channel, pixel = channels - 1, 2
        block = channel // lanes
        width = min(lanes, channels - block * lanes)
        at = block * lanes * size * 3 + pixel * width + channel % lanes
        assert flat[at] == values[0, channel].flat[pixel]


def test_every_operator_of_a_mixed_network_has_its_tensor(
    small_network: onnx.ModelProto, tmp_path: Path
) -> None:
    from onnx import numpy_helper

    model = parser.parse_model(MIXED)
    random = np.random.default_rng(0)
    for name, shape in {"w": (24, 3, 3, 3), "v": (24, 4)}.items():
        values = random.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    imported = frontend.import_onnx(model)
    compiled = compile_model(imported, targets.load("native"))
    library = export_library(compiled, tmp_path / "model.so")
    operators = operators_of(compiled)
    tensors = [operator["result"]["tensor"] for operator in operators]  # type: ignore[index]
    assert tensors == ["b", "b", "d", "d", "e", "e", "pooled", "f", "h", "scores"]
    trace = program_of(compiled, library).trace
    report = per_layer(trace, operators, imported, samples(imported))
    assert report.passed, report.summary()
    assert all(row.propagated and row.isolated for row in report.operators)

    def faulty(inputs, places, feed):  # type: ignore[no-untyped-def]
        """The operator that gives e adds a little too much, and what follows it sees that."""
        found = trace(inputs, places, feed)
        at = operators[4]["result"]["offset"]  # type: ignore[index]
        found[at] += 1.0
        if not feed.any():
            found[at + 500 :] += 1e-3
        return found

    report = per_layer(faulty, operators, imported, samples(imported))
    assert [row.index for row in report.at_fault] == [4]
    assert report.first_wrong is report.operators[4]
    assert report.summary().startswith("operator 4 elementwise_0 (Add_4) is at fault: 'e': error")
    with pytest.raises(InputError, match="built from another model"):
        per_layer(trace, operators, frontend.import_onnx(small_network), [])


@pytest.mark.slow
def test_command_on_a_bundle(
    small_network: onnx.ModelProto, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, bundle, plot = (str(tmp_path / name) for name in ("s.onnx", "b", "growth.svg"))
    Path(model).write_bytes(small_network.SerializeToString())
    assert main(["build", model, "-o", bundle]) == 0
    capsys.readouterr()
    asked = ["validate", bundle, "--model", model, "--per-layer", "--adversarial"]
    assert main([*asked, "--plot", plot]) == 0
    out = capsys.readouterr().out
    assert "wide1_active" in out
    assert "7 of 7 operators" in out
    assert "each operator alone" in Path(plot).read_text("utf-8")
    assert main([*asked, "--json"]) == 0
    parity = json.loads(capsys.readouterr().out)["parity"]
    assert len(parity["layers"]["operators"]) == 7
    assert {row["inputs"] for row in parity["outputs"]} == {"samples", *KINDS}
    assert main(["validate", bundle, "--per-layer"]) == 3


def test_adversarial_inputs_are_what_they_say(small_network: onnx.ModelProto) -> None:
    imported = frontend.import_onnx(small_network)
    made = adversarial(imported)
    by_kind: dict[str, list[np.ndarray]] = {}
    for kind, values in made:
        by_kind.setdefault(kind, []).append(values["picture"])
    assert set(by_kind) == set(KINDS)
    assert not by_kind["zeros"][0].any()
    denormal = by_kind["denormals"][0]
    assert denormal.any() and abs(denormal).max() < np.finfo(np.float32).tiny
    assert np.isnan(by_kind["NaN"][0]).sum() == 1
    assert [np.isinf(x).sum() for x in by_kind["infinity"]] == [1, 1]
    places = {tuple(map(int, np.argwhere(x)[0])) for x in by_kind["impulses"]}
    assert places == {(0, 0, 0, 0), (0, 1, 17, 0), (0, 2, 0, 17), (0, 0, 17, 17)}


@pytest.mark.slow
@pytest.mark.arm
def test_cross_bundle_is_judged_under_qemu(
    small_network: onnx.ModelProto, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, bundle = tmp_path / "s.onnx", tmp_path / "b"
    onnx.save(small_network, model)
    assert main(["build", str(model), "-o", str(bundle), "--target", "rpi4"]) == 0
    capsys.readouterr()
    asked = ["validate", str(bundle), "--model", str(model), "--json"]
    assert main([*asked, "--adversarial"]) == 0
    parity = json.loads(capsys.readouterr().out)["parity"]
    assert parity["machine"] == "qemu-aarch64 -cpu cortex-a72"
    assert {row["inputs"] for row in parity["outputs"]} == {"samples", *KINDS}
    for subject in (asked, ["validate", str(model), "--target", "rpi4", "--json"]):
        assert main([*subject, "--per-layer"]) == 0
        parity = json.loads(capsys.readouterr().out)["parity"]
        operators = parity["layers"]["operators"]
        assert len(operators) > 4
        assert all(row["propagated"]["passed"] and row["isolated"]["passed"] for row in operators)
    # an operator that is fed does not see what the one before it made, the next one does not either
    imported = frontend.import_onnx(small_network)
    rows = json.loads((bundle / "manifest.json").read_bytes())["operators"]
    trace = traced(bundle / RUNNER, targets.load("rpi4"), ["picture"])
    inputs = samples(imported, count=1)

    def faulty(inputs, places, feed):  # type: ignore[no-untyped-def]
        """Operator 2 hands on another tensor than it made, whatever feeds the others."""
        place = slice(rows[2]["result"]["offset"], rows[3]["result"]["offset"])
        if feed.any():
            return trace(inputs, places, feed)
        usual = trace(inputs, places, feed)
        wrong, only = usual.copy(), feed.copy()
        wrong[place] += 1.0
        only[2] = 1
        return trace(inputs, wrong, only)

    report = per_layer(faulty, rows, imported, inputs)
    assert not report.at_fault
    assert report.first_wrong is report.operators[3]


@pytest.mark.slow
def test_gpu_is_judged_by_emulated_kernels(
    small_network: onnx.ModelProto,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tmp_path / "s.onnx"
    onnx.save(small_network, model)
    asked = ["validate", str(model), "--target", "cuda-sm90", "--per-layer", "--adversarial"]
    code = main([*asked, "--json"])
    parity = json.loads(capsys.readouterr().out)["parity"]
    assert parity["machine"] == "emulation of its CUDA kernels on this CPU"
    assert {row["inputs"] for row in parity["outputs"]} == {"samples", *KINDS}
    operators = parity["layers"]["operators"]
    kinds = ["stem", "separable", "separable", "pool", "dense"]
    assert [row["kind"] for row in operators] == kinds
    assert all(row["propagated"]["passed"] and row["isolated"]["passed"] for row in operators)
    assert code == 0

    real = cuda_network._weights

    def wrong(network: Network) -> dict[str, np.ndarray]:
        """A weight of the second operator is another one."""
        weights = real(network)
        first = next(i for i in network.calls[1][1] if network.tensors[i].place == "Weights")
        changed = weights[f"weights {first}"].copy()
        changed.flat[0] += 1.0
        return weights | {f"weights {first}": changed}

    monkeypatch.setattr(cuda_network, "_weights", wrong)
    assert main([*asked, "--json"]) == 5
    captured = capsys.readouterr()
    assert "operator 1 separable_0" in captured.err
    operators = json.loads(captured.out)["parity"]["layers"]["operators"]
    assert [row["isolated"]["passed"] for row in operators] == [True, False, True, True, True]
    assert not any(row["propagated"]["passed"] for row in operators[1:])

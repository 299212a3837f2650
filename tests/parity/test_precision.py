"""tf32 and float16 are judged by PyTorch rounding where the network rounds, and no worse."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from tvm_mobilenet import frontend, targets
from tvm_mobilenet.compiler_pass.lower_operators import lower_operators
from tvm_mobilenet.compiler_pass.pipeline import compile_model
from tvm_mobilenet.compiler_pass.schedule_operators import spec_of
from tvm_mobilenet.errors import InputError, ParityError
from tvm_mobilenet.parity import judge, samples
from tvm_mobilenet.parity.cuda_network import NetworkEmulator
from tvm_mobilenet.parity.precision import _to_tf32, at_precision, simulated
from tvm_mobilenet.parity.reference import evaluate
from tvm_mobilenet.schedules.spec import to_json

GPU = targets.load("cuda-sm90")


def dense(scale: float = 1.0) -> frontend.ImportedModel:
    """relu(x @ w) @ v, with nodes `first` and `second` and the tensor `middle` between them."""
    generator = np.random.default_rng(0)
    w = (scale * generator.standard_normal((32, 16))).astype("float32")
    v = generator.standard_normal((16, 8)).astype("float32")
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["product"], name="first"),
            helper.make_node("Relu", ["product"], ["middle"], name="relu"),
            helper.make_node("MatMul", ["middle", "v"], ["y"], name="second"),
        ],
        "dense",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (4, 32))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (4, 8))],
        [numpy_helper.from_array(w, "w"), numpy_helper.from_array(v, "v")],
    )
    opset = [helper.make_opsetid("", 18)]
    return frontend.import_onnx(helper.make_model(graph, opset_imports=opset, ir_version=9))


def operators(schedule: str, dtype: str) -> list[dict[str, object]]:
    """The two layers as a manifest lists them."""
    return [
        {
            "kind": "dense",
            "schedule": schedule,
            "onnx_nodes": nodes,
            "result": {"tensor": tensor, "dtype": kind},
        }
        for nodes, tensor, kind in (
            (("first", "relu"), "middle", dtype),
            (("second",), "y", "float32"),
        )
    ]


def weights(model: frontend.ImportedModel) -> list[np.ndarray]:
    return [numpy_helper.to_array(tensor) for tensor in model.onnx.graph.initializer]


def tf32(values: np.ndarray) -> np.ndarray:
    """Ten bits of mantissa, by arithmetic: away from zero where two are equally near."""
    mantissa, exponent = np.frexp(values.astype("float64"))
    rounded = np.sign(mantissa) * np.floor(np.abs(mantissa) * 2**11 + 0.5) / 2**11
    return np.ldexp(rounded, exponent).astype("float32")


def test_rounding_to_tf32() -> None:
    values = np.random.default_rng(0).standard_normal(1000).astype("float32")
    values = np.append(values, np.float32([1 + 2**-11, -1 - 2**-11, 0, np.inf, np.nan, 3e38]))
    found = _to_tf32(torch.from_numpy(values)).numpy()
    finite = np.isfinite(values)
    np.testing.assert_array_equal(found[finite], tf32(values[finite]))
    np.testing.assert_array_equal(found[~finite], values[~finite])
    assert found[1000] == 1 + 2**-10
    assert np.abs(found[:1000] / values[:1000] - 1).max() <= 2**-11


@pytest.mark.parametrize(
    ("precision", "schedule", "dtype"),
    [
        ("float16", "cuda-dense", "float16"),
        ("float16", "cuda-tensor-dense-product", "float16"),
        ("tf32", "cuda-dense", "float32"),
        ("tf32", "cuda-tensor-dense-product", "float32"),
    ],
)
def test_pytorch_rounds_where_the_network_does(precision, schedule, dtype) -> None:
    model = dense()
    w, v = weights(model)
    reference = evaluate(model, samples(model, count=1))
    (found,) = simulated(reference, model, precision, operators(schedule, dtype))
    x = reference[0].inputs["x"]
    half = lambda values: values.astype("float16").astype("float32")  # noqa: E731
    on_cores = schedule.startswith("cuda-tensor")
    if precision == "float16":
        x = half(x) if on_cores else x
        expected = half(np.maximum(x @ half(w), 0)) @ half(v)
    else:
        factor = tf32 if on_cores else lambda values: values
        expected = factor(np.maximum(factor(x) @ factor(w), 0)) @ factor(v)
    np.testing.assert_allclose(found.float32["y"], expected, rtol=0, atol=2e-5)
    assert (np.abs(found.float32["y"] - reference[0].float32["y"]).max() > 1e-4) == (
        precision == "float16" or on_cores
    )
    np.testing.assert_array_equal(found.float64["y"], reference[0].float64["y"])


def test_what_float16_cannot_hold_is_refused() -> None:
    model = dense(scale=1e4)
    reference = evaluate(model, samples(model, count=1))
    says = r"float16 overflows: 'middle' reaches \d.*e\+05, float16 ends at 65504; use --precision"
    with pytest.raises(ParityError, match=says):
        simulated(reference, model, "float16", operators("cuda-dense", "float16"))
    odd = [dataclasses.replace(reference[0], kind="large values")]  # there infinity is expected
    (found,) = simulated(odd, model, "float16", operators("cuda-dense", "float16"))
    assert not np.isfinite(found.float32["y"]).all()
    with pytest.raises(InputError, match=r"a weight of .* does not fit float16.*65504; use"):
        lower_operators(dense(scale=1e5).mod, 4, "float16")


def test_records_of_one_precision_are_not_those_of_another() -> None:
    """They are kept by the operator's text, which says the precision of what depends on it."""
    model = frontend.load_model("mobilenet_v1", alpha=0.25, resolution=32)
    texts, bytes_moved = {}, {}
    for precision in ("float32", "tf32", "float16"):
        mod, _ = lower_operators(model.mod, 4, precision)
        specs = [spec for function in mod.functions.values() if (spec := spec_of(function))]
        texts[precision] = {to_json(spec): spec.kind for spec in specs}
        bytes_moved[precision] = sum(spec.min_bytes for spec in specs)
    assert not any("precision" in json.loads(text) for text in texts["float32"])
    assert not texts["float16"].keys() & (texts["float32"].keys() | texts["tf32"].keys())
    shared = texts["tf32"].keys() & texts["float32"].keys()
    assert {texts["tf32"][text] for text in shared} == {"depthwise", "pool"}  # no products
    assert bytes_moved["tf32"] == bytes_moved["float32"]
    assert 0.5 < bytes_moved["float16"] / bytes_moved["float32"] < 0.55


@pytest.mark.parametrize(
    ("arguments", "target", "precision", "code", "says"),
    [
        (("build", "-o", "out"), "x86-64-v3", "float16", 2, "goes with a GPU; x86-64-v3 is none"),
        (("validate",), "cuda-sm75", "tf32", 3, "cuda-sm75 has no tensor cores for tf32"),
    ],
)
def test_targets_without_it_refuse(cli, tmp_path, arguments, target, precision, code, says) -> None:
    command, *others = arguments
    options = ("--target", target, "--precision", precision)
    done = cli(command, "mobilenet_v1", *others, *options, cwd=tmp_path)
    errors = [line for line in done.stderr.splitlines() if "error" in line]
    assert (done.returncode, done.stdout, len(errors)) == (code, "", 1)
    assert says in errors[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float16", "tf32"])
def test_whole_network_and_a_wrong_weight_scale(precision) -> None:
    model = frontend.load_model("mobilenet_v1", alpha=0.25, resolution=128)
    compiled = compile_model(model, targets.at_precision(GPU, precision))
    stored = {operator.result.dtype for operator in compiled.operators[:-1]}
    assert stored == {"float16" if precision == "float16" else "float32"}
    assert compiled.operators[-1].result.dtype == "float32"  # the network's own
    references = at_precision(evaluate(model, samples(model, count=1)), model, compiled)
    with NetworkEmulator(compiled) as network:

        def report():
            return judge([network.run(references[0].inputs)], references, precision)

        right = report()
        assert right.passed, right.summary()
        assert f"PyTorch {precision}: " in right.summary()
        # of the same size as PyTorch's, so neither far less exact nor float32 under another name
        assert 0.5 < right.outputs[0].ratio < 2 and right.outputs[0].relative_l2 > 1e-5
        matrices = [i for i, w in enumerate(network._network.weights) if w.size > 10_000]
        for number in (matrices[0], matrices[len(matrices) // 2]):
            weight = network._network.weights[number]
            network._network.weights[number] = (weight * 1.25).astype(weight.dtype)
            wrong = report()
            assert not wrong.passed and f"PyTorch {precision}'s own" in wrong.summary()
            network._network.weights[number] = weight
        assert report().passed

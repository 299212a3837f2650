"""import_onnx: what it returns besides right numbers; batch, opsets, external data, names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tvm_mobilenet.errors import InputError
from tvm_mobilenet.frontend import TensorInfo, import_onnx


def _classifier(g: Any, x: str) -> str:
    """conv, batch norm, relu6, hard-swish twice over the same constants, pool, Gemm."""
    x = g.batch_norm(g.conv(x, 8, 8, 3), 8)
    x = g.op("Clip", x, g.constant(0), g.constant(6))
    three, zero, six, sixth = (g.constant(value) for value in (3, 0, 6, 1 / 6))
    for _ in range(2):
        gate = g.op("Mul", g.op("Clip", g.op("Add", x, three), zero, six), sixth)
        x = g.op("Mul", x, gate)
    pooled = g.op("Flatten", g.op("GlobalAveragePool", x))
    return g.op("Gemm", pooled, g.random(5, 8), g.random(5), transB=1)


def test_inputs_and_outputs_keep_their_names_and_shapes(build: Callable) -> None:
    imported = import_onnx(build(_classifier, batch=3), name="mine")
    assert imported.name == "mine"
    assert imported.inputs == (TensorInfo("x", (3, 8, 9, 9), "float32"),)
    assert imported.outputs == (TensorInfo("y", (3, 5), "float32"),)
    assert imported.module is None


def test_the_given_model_is_left_as_it_was(build: Callable) -> None:
    model = build(_classifier, opset=13, batch="N")
    before = model.SerializeToString(deterministic=True)
    import_onnx(model)
    assert model.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("opset", [11, 13, 14, 21])
def test_opsets(opset: int, build: Callable, compare: Callable) -> None:
    model = build(_classifier, opset=opset)
    model.ir_version = 10
    compare(import_onnx(model), model)


@pytest.mark.parametrize(("batch", "size"), [(None, 1), (3, 3)])
def test_symbolic_batch(batch: int | None, size: int, build: Callable, compare: Callable) -> None:
    imported = import_onnx(build(_classifier, batch="N"), batch=batch)
    assert imported.inputs[0].shape == (size, 8, 9, 9)
    assert imported.outputs[0].shape == (size, 5)
    compare(imported)


def test_batch_must_agree_with_a_fixed_one(build: Callable) -> None:
    with pytest.raises(InputError, match="input 'x' has a fixed batch of 2, so batch 3"):
        import_onnx(build(_classifier, batch=2), batch=3)
    assert import_onnx(build(_classifier, batch=2), batch=2).inputs[0].shape[0] == 2


def test_a_reshape_that_forgets_the_batch_is_refused(build: Callable) -> None:
    """Its result would mix the pictures of a batch."""

    def fixed(g: Any, x: str) -> str:
        return g.op("Reshape", g.op("GlobalAveragePool", x), g.constant([1, -1], "int64"))

    model = build(fixed, batch="N")
    model.graph.output[0].type.CopyFrom(helper.make_tensor_type_proto(TensorProto.FLOAT, ["N", 8]))
    assert import_onnx(model).outputs[0].shape == (1, 8)
    with pytest.raises(InputError, match=r"output 'y' .* batch 3"):
        import_onnx(model, batch=3)


def test_external_data(tmp_path: Path, build: Callable, compare: Callable) -> None:
    model = build(_classifier)
    path = tmp_path / "tiny.onnx"
    onnx.save(model, path, save_as_external_data=True, location="tiny.bin", size_threshold=0)
    imported = import_onnx(path)
    assert imported.name == "tiny"
    compare(imported)

    with pytest.raises(InputError, match=r"external and not loaded"):
        import_onnx(onnx.load(path, load_external_data=False))
    data = (tmp_path / "tiny.bin").read_bytes()
    (tmp_path / "tiny.bin").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"tiny\.onnx: cannot load the external data of 'c"):
        import_onnx(path)
    (tmp_path / "tiny.bin").unlink()
    with pytest.raises(InputError, match=r"tiny\.bin is missing; it belongs beside the model"):
        import_onnx(path)


def test_model_local_functions_are_inlined(build: Callable, compare: Callable) -> None:
    model = build(lambda g, x: g.op("Gate", x, domain="mine"))
    body = [helper.make_node("HardSwish", ["a"], ["b"], name="inner")]
    opset = helper.make_opsetid("", 17)
    model.functions.append(helper.make_function("mine", "Gate", ["a"], ["b"], body, [opset]))
    model.opset_import.append(helper.make_opsetid("mine", 1))
    compare(import_onnx(model))


def test_several_outputs(new_graph: type, compare: Callable) -> None:
    graph = new_graph()
    model = graph.model(graph.op("Relu", graph.conv("x", 8, 4)))
    model.graph.output.append(helper.make_tensor_value_info("v0", TensorProto.FLOAT, [1, 4, 9, 9]))
    imported = import_onnx(model)
    assert [output.name for output in imported.outputs] == ["y", "v0"]
    compare(imported)


def test_initializers_that_are_inputs_too_are_constants(build: Callable, compare: Callable) -> None:
    model = build(_classifier)
    for tensor in model.graph.initializer:
        model.graph.input.append(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        )
    imported = import_onnx(model)
    assert [value.name for value in imported.inputs] == ["x"]
    compare(imported)


def test_folding_does_not_mistake_another_constant_for_its_own(
    new_graph: type, compare: Callable
) -> None:
    """The library calls a folded bias `<weight>_bias`, which this graph has already."""
    g = new_graph()
    g.initializers.append(numpy_helper.from_array(np.ones((4, 8, 1, 1), "float32"), "w"))
    g.initializers.append(numpy_helper.from_array(np.full((1, 4, 1, 1), 7, "float32"), "w_bias"))
    folded = g.batch_norm(g.op("Conv", "x", "w"), 4)
    compare(import_onnx(g.model(g.op("Add", folded, "w_bias"))))


def test_two_clips_of_one_value_keep_their_bounds(new_graph: type, compare: Callable) -> None:
    g = new_graph()
    one = g.op("Min", g.op("Max", "x", g.constant(0)), g.constant(6))
    other = g.op("Min", g.op("Max", "x", g.constant(1)), g.constant(2))
    compare(import_onnx(g.model(g.op("Add", one, other))))


@pytest.mark.parametrize("bounds", [((0, 1), (2, 3)), ((2, 3), (0, 1)), ((-3, -1), (0, 6))])
def test_clips_with_disjoint_bounds(bounds: tuple, new_graph: type, compare: Callable) -> None:
    g = new_graph()
    x = "x"
    for low, high in bounds:
        x = g.op("Clip", x, g.constant(low), g.constant(high))
    compare(import_onnx(g.model(g.op("Relu", x))))


# ---- names ----


def test_each_binding_knows_the_nodes_it_computes(build: Callable) -> None:
    imported = import_onnx(build(_classifier))
    bindings = [b.var.name for block in imported.mod["main"].body.blocks for b in block.bindings]
    assert list(imported.node_names) == bindings
    assert len(set(bindings)) == len(bindings)
    names = imported.node_names
    assert set(names["v1_conv2d"]) == set(names["v1"]) == {"conv_0", "batchnormalization_1"}
    # The conv's own constants and Constant nodes are no steps of the computation.
    assert set(names["v6"]) == {"add_3", "clip_4", "mul_5", "mul_6"}
    known = {node.name for node in imported.onnx.graph.node}
    assert set().union(*names.values()) <= known


def test_nodes_without_names_are_called_by_operator_and_position(build: Callable) -> None:
    model = build(_classifier)
    for node in model.graph.node:
        node.name = ""
    imported = import_onnx(model)
    assert imported.node_names["v2"] == ("Clip_2",)
    assert imported.onnx.graph.node[2].name == "Clip_2"


def test_names_become_identifiers(new_graph: type, compare: Callable) -> None:
    """Exporters use slashes, dots, colons and digits; Relax names must survive printing."""
    g = new_graph()
    model = g.model(g.op("Relu", g.op("Relu", g.conv("x", 8, 4))))
    new_names = {"x": "input:0", "v0": "/a.b/Conv_output_0", "v1": "1", "y": "/a/b/Conv_output_0"}
    for node in model.graph.node:
        node.input[:] = [new_names.get(name, name) for name in node.input]
        node.output[:] = [new_names.get(name, name) for name in node.output]
    model.graph.input[0].name, model.graph.output[0].name = new_names["x"], new_names["y"]
    imported = import_onnx(model)
    assert imported.inputs[0].name == "input:0"
    assert imported.outputs[0].name == "/a/b/Conv_output_0"
    assert all(name.isidentifier() for name in imported.node_names)
    compare(imported)

"""What cannot be imported is refused with one line that says what, where and what to do."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tvm_mobilenet.errors import InputError
from tvm_mobilenet.frontend import import_onnx


def _conv(g: Any, x: str) -> str:
    return g.op("Relu", g.conv(x, 8, 4))


def refused(model: onnx.ModelProto | str | Path, **options: Any) -> str:
    """The message, which is one line, of the InputError that importing raises."""
    with pytest.raises(InputError) as caught:
        import_onnx(model, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) > 10
    return message


# ---- files ----


def test_missing_file(tmp_path: Path) -> None:
    assert refused(tmp_path / "no.onnx") == f"{tmp_path / 'no.onnx'}: no such file"


def test_directory(tmp_path: Path) -> None:
    assert "is a directory" in refused(tmp_path)


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_truncated_file(kept: float, tmp_path: Path, build: Callable) -> None:
    data = build(_conv).SerializeToString()
    path = tmp_path / "cut.onnx"
    path.write_bytes(data[: int(kept * len(data))])
    assert f"{path}: not an ONNX model, or it is truncated" in refused(path)


@pytest.mark.parametrize(
    "content", [b"hello, this is a text\n" * 20, bytes(range(256)) * 8, b"\x89PNG\r\n\x1a\n" * 9]
)
@pytest.mark.parametrize("suffix", [".onnx", ".json", ".textproto", ".onnxtxt"])
def test_other_files(content: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"other{suffix}"
    path.write_bytes(content)
    assert "not an ONNX model" in refused(path)


def test_weights_given_as_the_model(tmp_path: Path) -> None:
    import torch

    torch.save({"a": torch.zeros(1)}, tmp_path / "weights.pth")
    assert "--weights" in refused(tmp_path / "weights.pth")


# ---- graphs ----


def test_all_operators_that_tvm_cannot_import_are_listed(build: Callable) -> None:
    def spelling(g: Any, x: str) -> str:
        first = g.op("FancyConv", x, domain="com.example", name="fancy")
        x = g.op("Relu", first)
        return g.op("StringNormalizer", g.op("FancyConv", x, domain="com.example", name="again"))

    model = build(spelling)
    model.opset_import.append(helper.make_opsetid("com.example", 3))
    message = refused(model)
    assert "FancyConv (domain com.example, opset 3) at node 'fancy', 'again'" in message
    assert "StringNormalizer (domain ai.onnx, opset 17) at node 'stringnormalizer_3'" in message


def test_a_foreign_operator_with_a_known_name_is_not_taken_for_it(build: Callable) -> None:
    model = build(lambda g, x: g.op("Relu", x, domain="com.example"))
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    assert "Relu (domain com.example, opset 1) at node 'relu_0'" in refused(model)


def test_operator_of_a_later_opset(build: Callable) -> None:
    assert "HardSwish" in refused(build(lambda g, x: g.op("HardSwish", x), opset=13))


def test_invalid_graph(build: Callable) -> None:
    model = build(_conv)
    model.graph.node[1].input[0] = "nowhere"
    message = refused(model)
    assert "not valid ONNX" in message
    assert "nowhere" in message


def test_two_values_of_one_name(build: Callable) -> None:
    model = build(_conv)
    model.graph.node[1].output[0] = model.graph.node[0].output[0]
    assert "not valid ONNX" in refused(model)


def test_shapes_that_do_not_fit(build: Callable) -> None:
    """A convolution of 9 channels over 8: which node, and TVM's own reason."""
    message = refused(build(lambda g, x: g.conv(x, 9, 4)))
    assert "node 'conv_0' (Conv, opset 17) cannot be imported" in message


def test_no_outputs_and_no_nodes(build: Callable) -> None:
    model = build(_conv)
    del model.graph.output[:]
    assert "no outputs" in refused(model)
    model = build(_conv)
    del model.graph.node[:]
    assert "no nodes" in refused(model)


def test_training_mode(build: Callable) -> None:
    message = refused(build(lambda g, x: g.batch_norm(x, 8, training_mode=1)))
    assert "node 'batchnormalization_0'" in message
    assert "eval()" in message


def test_output_whose_size_depends_on_data(build: Callable) -> None:
    message = refused(build(lambda g, x: g.op("Cast", g.op("NonZero", x), to=TensorProto.FLOAT)))
    assert "node 'nonzero_0' (NonZero) has an output whose size depends on data" in message


# ---- shapes and types ----


@pytest.mark.parametrize(
    ("spatial", "said"),
    [(["h", "w"], "dynamic height ('h'), axis 2"), ([9, "w"], "dynamic width ('w'), axis 3")],
)
def test_dynamic_picture(spatial: list, said: str, build: Callable) -> None:
    message = refused(build(_conv, batch="N", spatial=spatial))
    assert f"input 'x' has a {said}" in message
    assert "make_dynamic_shape_fixed --input_name x" in message


@pytest.mark.parametrize("size", [0, -1])
def test_impossible_size(size: int, build: Callable) -> None:
    assert f"input 'x' has height {size}" in refused(build(_conv, spatial=[size, 9]))


@pytest.mark.parametrize("batch", [0, -2])
def test_impossible_batch(batch: int, build: Callable) -> None:
    assert f"batch {batch}" in refused(build(_conv, batch="N"), batch=batch)


def test_input_without_a_shape(build: Callable) -> None:
    model = build(_conv)
    model.graph.input[0].type.tensor_type.ClearField("shape")
    message = refused(model)
    assert "shape" in message


@pytest.mark.parametrize(
    "elem_type", [TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.UINT8, TensorProto.INT64]
)
def test_input_type(elem_type: int, build: Callable) -> None:
    name = TensorProto.DataType.Name(elem_type).lower()
    model = build(lambda g, x: g.op("Cast", x, to=TensorProto.FLOAT), elem_type=elem_type)
    assert f"input 'x' is {name}; only float32" in refused(model)


def test_half_precision_weights(build: Callable) -> None:
    def spelling(g: Any, x: str) -> str:
        half = g.op("Cast", x, to=TensorProto.FLOAT16)
        out = g.op("Conv", half, g.constant(np.ones((4, 8, 1, 1)), "float16"), name="conv")
        return g.op("Cast", out, to=TensorProto.FLOAT)

    assert "weight 'c0' is float16; only float32" in refused(build(spelling))


def test_half_precision_storage_is_no_obstacle(build: Callable, compare: Callable) -> None:
    """Weights kept in float16 and cast once are float32 by the time they are used."""
    compare(
        import_onnx(
            build(
                lambda g, x: g.op(
                    "Conv",
                    x,
                    g.op("Cast", g.constant(np.ones((4, 8, 1, 1)), "float16"), to=1),
                )
            )
        )
    )


# ---- hostile files ----


@pytest.mark.parametrize("spatial", [[2**31, 1], [2**31, 2**31], [2**62, 2**62], [50000, 50000]])
def test_huge_input(spatial: list[int], build: Callable) -> None:
    message = refused(build(lambda g, x: g.op("Relu", x), spatial=spatial))
    assert "input 'x' has" in message
    assert "elements" in message


HUGE: dict[str, Callable[[Any, str], str]] = {
    "padding": lambda g, x: g.conv(x, 8, 4, pads=[2**20] * 4),
    "expand": lambda g, x: g.op("Expand", x, g.constant([2**14, 8, 9 * 2**10, 9], "int64")),
    "constant": lambda g, x: g.op(
        "Add", x, g.op("ConstantOfShape", g.constant([2**20, 8, 2**12, 9], "int64"))
    ),
    "tile": lambda g, x: g.op("Tile", x, g.constant([2**16, 1, 2**12, 1], "int64")),
    "range": lambda g, x: g.op(
        "Add", x, g.op("Range", g.constant(0.0), g.constant(9e12), g.constant(1.0))
    ),
}


@pytest.mark.parametrize("spelling", HUGE.values(), ids=HUGE.keys())
def test_huge_tensors_inside(spelling: Callable, build: Callable) -> None:
    refused(build(spelling))


def test_huge_tensor_without_its_data(build: Callable) -> None:
    model = build(_conv)
    model.graph.initializer[0].dims[:] = [2**31, 2**31]
    assert f"tensor 'c0' of shape [{2**31}, {2**31}] does not match" in refused(model)


def test_external_data_outside_the_directory(tmp_path: Path, build: Callable) -> None:
    """A model must not read other files of its user."""
    (tmp_path / "secret").write_bytes(bytes(4096))
    model = build(_conv)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    (tmp_path / "inner").mkdir()
    path = tmp_path / "inner" / "m.onnx"
    path.write_bytes(model.SerializeToString())
    assert "cannot load the external data of 'c0'" in refused(path)


def test_string_weights(build: Callable) -> None:
    model = build(_conv)
    strings = numpy_helper.from_array(np.array(["a", "b"], object), "c0")
    model.graph.initializer[0].CopyFrom(strings)
    refused(model)


# ---- noise ----


def test_nothing_is_printed(
    build: Callable, capfd: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        import_onnx(build(_conv, opset=13, batch="N"))
        refused(build(lambda g, x: g.conv(x, 9, 4)))
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
    assert caplog.records == []


def test_names_out_of_the_file_stay_on_the_line(tmp_path: Path, build: Callable) -> None:
    model = build(_conv)
    old, model.graph.input[0].name = model.graph.input[0].name, "pic\nture\x1b[2J"
    for node in model.graph.node:
        node.input[:] = [model.graph.input[0].name if name == old else name for name in node.input]
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    path = tmp_path / "lines.onnx"
    path.write_bytes(model.SerializeToString())
    assert r"input 'pic ture\x1b[2J' is double" in refused(path)

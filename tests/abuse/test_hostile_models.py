"""Models that ask for the impossible are refused with one line, in little time and memory."""

from __future__ import annotations

import resource
from collections.abc import Callable, Generator, Sequence

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tvm_mobilenet import frontend
from tvm_mobilenet.errors import InputError
from tvm_mobilenet.frontend import limits

MEMORY = 4 << 30  # bytes beyond what the process has that a refusal may take
node = helper.make_node


@pytest.fixture(autouse=True)
def _little_memory() -> Generator[None]:
    """An allocation that goes too far fails instead of taking the machine down."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:  # noqa: PTH123
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def model(
    nodes: Sequence[onnx.NodeProto],
    shape: Sequence[int] = (1, 3, 8, 8),
    **constants: Sequence[int] | np.ndarray,
) -> onnx.ModelProto:
    tensors = [
        numpy_helper.from_array(np.asarray(value, getattr(value, "dtype", np.int64)), name)
        for name, value in constants.items()
    ]
    tensor = helper.make_tensor_value_info
    inputs = [tensor("x", TensorProto.FLOAT, shape)]
    outputs = [tensor("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "hostile", inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def chain(length: int, op: str = "Relu", operands: int = 1) -> onnx.ModelProto:
    names = ["x", *(f"v{i}" for i in range(1, length)), "y"]
    return model(
        [node(op, [names[i]] * operands, [names[i + 1]], **({"axis": 1} if op == "Concat" else {}))
         for i in range(length)]
    )  # fmt: skip


def windowed(op: str, **attributes: object) -> onnx.ModelProto:
    inputs = ["x", "w"] if op == "Conv" else ["x"]
    weight = {"w": np.ones((4, 3, 3, 3), np.float32)} if op == "Conv" else {}
    return model([node(op, inputs, ["y"], **attributes)], **weight)


HOSTILE: dict[str, Callable[[], onnx.ModelProto]] = {
    "an input of 2^31 elements": lambda: model([node("Relu", ["x"], ["y"])], (1, 1, 2**16, 2**15)),
    "a dimension of 2^62": lambda: model([node("Relu", ["x"], ["y"])], (2**62, 4, 1, 1)),
    "a million nodes": lambda: chain(10**6),
    "a million operands": lambda: chain(1, "Concat", 10**6),
    "doubled 40 times": lambda: chain(40, "Concat", 2),
    "Expand": lambda: model([node("Expand", ["x", "s"], ["y"])], (1, 1), s=[2**31, 2**31]),
    "Tile": lambda: model([node("Tile", ["x", "s"], ["y"])], s=[2**20, 2**20, 1, 1]),
    "Resize": lambda: model([node("Resize", ["x", "", "", "s"], ["y"])], s=[1, 3, 2**20, 2**20]),
    "Reshape": lambda: model([node("Reshape", ["x", "s"], ["y"])], s=[2**33, 1]),
    "Pad": lambda: model([node("Pad", ["x", "s"], ["y"])], s=[0, 0, 2**20, 2**20, 0, 0, 0, 0]),
    "ConstantOfShape": lambda: model(
        [node("ConstantOfShape", ["s"], ["c"]), node("Add", ["x", "c"], ["y"])], s=[2**30, 3, 8, 8]
    ),
    "Range": lambda: model(
        [
            node("Range", ["a", "b", "c"], ["r"]),
            node("Cast", ["r"], ["f"], to=TensorProto.FLOAT),
            node("Add", ["x", "f"], ["y"]),
        ],
        (1,),
        **dict(zip("abc", np.array([0, 2**31, 1]), strict=True)),
    ),
    "huge padding": lambda: windowed("Conv", pads=[2**30] * 4),
    "overflowing padding": lambda: windowed("Conv", pads=[2**62] * 4),
    "negative padding": lambda: windowed("Conv", pads=[-1, -1, 0, 0]),
    "no stride": lambda: windowed("Conv", strides=[0, 0]),
    "a negative stride": lambda: windowed("Conv", strides=[-1, 1]),
    "no dilation": lambda: windowed("Conv", dilations=[0, 0]),
    "a negative dilation": lambda: windowed("Conv", dilations=[-1, -1]),
    "no groups": lambda: windowed("Conv", group=0),
    "an empty kernel": lambda: windowed("MaxPool", kernel_shape=[0, 0]),
    "windows of padding": lambda: windowed("AveragePool", kernel_shape=[2, 2], pads=[9, 9, 9, 9]),
    "a kernel beyond the picture": lambda: windowed("MaxPool", kernel_shape=[99, 99]),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_is_refused_with_one_line(what: str) -> None:
    with pytest.raises(InputError) as caught:
        frontend.import_onnx(HOSTILE[what]())
    message = str(caught.value)
    assert "\n" not in message and len(message) < 1000


def test_the_largest_graph_that_is_taken_imports() -> None:
    assert frontend.import_onnx(chain(limits.MAX_NODES // 10)).outputs


def test_a_tensor_beyond_this_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2**18}  # 1 GiB
    monkeypatch.setattr(limits.os, "sysconf", sizes.__getitem__)
    limits.check_shape([2**30 // 24], "tensor")
    with pytest.raises(InputError, match="this machine has 1"):
        limits.check_shape([2**30 // 24 + 1], "tensor")

"""The memory plan as tables: every tensor inside its place, every kernel with its arguments."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tvm_mobilenet import frontend, targets
from tvm_mobilenet.compiler_pass.pipeline import compile_model
from tvm_mobilenet.deploy.network import Weights, plan, write_sources

HEADS = [
    "result = Gemm(flat, w1, b1)",
    "scores = Gemm(flat, w1, b1)  result = Softmax(scores)",
    "turned = Transpose<perm=[0,2,3,1]>(active)  middle = ReduceMean<keepdims=0>(turned)"
    "  scores = Gemm(flat, w1, b1)  result = Add(scores, middle)",
]


@pytest.mark.parametrize("head", HEADS)
def test_tensors_lie_inside_their_places(make_model, head: str, tmp_path: Path) -> None:
    imported = frontend.load_model(make_model(head=head))
    compiled = compile_model(imported, targets.load("rpi4"))
    weights = Weights()
    network = plan(compiled.planned, weights)
    assert [name for name, _ in network.calls] == [o.symbol for o in compiled.operators]
    (place,) = network.outputs
    assert network.tensors[place].shape == imported.outputs[0].shape
    for tensor in network.tensors:
        size = int(np.prod(tensor.shape)) * 4
        room = {"Arena": network.arena_bytes, "Weights": weights.bytes}.get(tensor.place)
        assert tensor.offset % 64 == 0
        assert room is None or tensor.offset + size <= room
    for _, numbers in network.calls:  # a kernel writes its last argument, over none of the others
        places = [(network.tensors[n].place, network.tensors[n].offset) for n in numbers]
        assert places[-1][0] == "Arena" and places[-1] not in places[:-1]
    write_sources([network], weights, compiled, tmp_path, threads=2)
    assert (tmp_path / "weights.bin").stat().st_size == weights.bytes
    before = weights.bytes
    plan(compiled.planned, weights)  # equal constants are kept once
    assert weights.bytes == before
    text = (tmp_path / "network.cc").read_text()
    assert text.count("Place::kWeights") == len(network.weights)
    assert "const int threads = 2;" in text

"""No kernel of ours spills, on any GPU that has a target, at any precision.

CI takes a sample. Every kernel of the paper's networks on every GPU (some 40 minutes of one core):
``ALL_CUDA_SHAPES=1 python -m pytest tests/schedules/test_cuda_resources.py``.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from pathlib import Path

import pytest

from tvm_mobilenet import targets
from tvm_mobilenet.parity.cuda_launches import lower
from tvm_mobilenet.runtime import nvrtc
from tvm_mobilenet.runtime.ptxas import parse_log
from tvm_mobilenet.schedules import base
from tvm_mobilenet.schedules.cuda.gemm import MIN_BLOCKS
from tvm_mobilenet.schedules.spec import RELU6, ConvSpec

GPUS = [name for name in targets.names() if targets.load(name).gpu is not None]
BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "gpu_resources.py"
MODELS = ("V1 1.0/224", "V1 0.25/128", "V2", "V3-large")
BATCHES = [*((name, 1) for name in GPUS), ("cuda-sm75", 32), ("cuda-sm90", 32)]
LARGE = [("cuda-sm90", 8), ("cuda-sm80", 32), ("cuda-sm90", 128)]
EVERY_CASE = [
    (model, name, batch, precision)
    for precision, cases in (("float32", BATCHES), ("float16", BATCHES + LARGE), ("tf32", LARGE))
    for model in MODELS
    for name, batch in cases
] + [
    (model, name, 1, "tf32")
    for model in MODELS
    for name in GPUS
    if targets.load(name).gpu.peak_gflops("tf32")
]
SAMPLE = [("V1 0.25/128", "cuda-sm86", 1, "float32")]
CASES = EVERY_CASE if os.environ.get("ALL_CUDA_SHAPES") else SAMPLE
EXPAND = ConvSpec(1, 24, 56, 56, 144, lanes=4, activation=RELU6)  # V2's; twelve float4 under way
RAGGED = ConvSpec(32, 512, 7, 7, 1024, lanes=4, activation=RELU6)  # 1568 pixels, 24.5 tiles


@pytest.mark.slow
@pytest.mark.parametrize("name", GPUS)
@pytest.mark.parametrize("spec", [EXPAND, RAGGED], ids=["expand", "ragged"])
def test_the_most_loaded_kernels_keep_their_registers(spec: ConvSpec, name: str) -> None:
    target = targets.load(name)
    function = base.schedule(spec, target).function
    source = lower({"kernel": function}, target).source
    blocks = int(function.attrs[MIN_BLOCKS])  # as compile_model has it; `lower` leaves it out
    bound = re.sub(r"(__launch_bounds__\(\d+)\)", rf"\1, {blocks})", source)
    assert bound != source
    (used,) = parse_log(nvrtc.compile_source(bound, target.gpu.arch).log).values()
    assert used.stack_bytes == used.spill_store_bytes == used.spill_load_bytes == 0


@pytest.mark.slow
@pytest.mark.parametrize(("model", "name", "batch", "precision"), CASES)
def test_no_kernel_spills(
    model: str, name: str, batch: int, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.spec_from_file_location("gpu_resources", BENCHMARK)
    benchmark = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, benchmark)  # dataclasses look there
    spec.loader.exec_module(benchmark)
    assert benchmark.resources(model, name, batch, precision).spilling == []

"""LiteRT (TensorFlow Lite) with its XNNPACK delegate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tvm_mobilenet.profiling.contestants.base import Contestant, Source

if TYPE_CHECKING:
    import numpy as np


class LiteRt(Contestant):
    """Converted with litert-torch; images come in NHWC, the layout XNNPACK computes in."""

    name = "litert"
    needs = (
        "ai_edge_litert",
        "litert_torch",
        "litert_converter",
        "ai_edge_quantizer",
        "torchao",
        "jax",
        "rich",
        "absl",
        "immutabledict",
    )
    # litert-torch's own list cannot be installed beside TVM: it pins typing-extensions < 4.13
    # (through xdsl) and brings transformers, none of which the conversion imports.
    install = (
        "pip install ai-edge-litert jax rich absl-py immutabledict && pip install --no-deps "
        "litert-torch==0.10.* litert-converter==0.5.* ai-edge-quantizer==0.10.* torchao==0.18.*"
    )
    distribution = "ai-edge-litert"
    settings = "XNNPACK delegate, num_threads = threads, NHWC input, converted by litert-torch"

    from_program = True

    def convert(self, source: Source, folder: Path) -> Path:
        import litert_torch
        import torch

        assert source.program is not None
        program = torch.export.load(source.program)
        examples = list(program.example_inputs[0])
        images = [i for i, x in enumerate(examples) if x.dim() == 4]
        for i in images:
            examples[i] = examples[i].permute(0, 2, 3, 1).contiguous()
        module = litert_torch.to_channel_last_io(program.module(), args=images)
        output = folder / "model.tflite"
        litert_torch.convert(module, tuple(examples)).export(str(output))
        return output

    def load(self, artifact: Path, threads: int) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self._interpreter = Interpreter(str(artifact), num_threads=threads)
        self._interpreter.allocate_tensors()

    def feed(self, inputs: list[np.ndarray]) -> None:
        details = sorted(self._interpreter.get_input_details(), key=lambda d: d["name"])
        for detail, x in zip(details, inputs, strict=True):
            nhwc = x.transpose(0, 2, 3, 1) if x.ndim == 4 else x
            self._interpreter.set_tensor(detail["index"], nhwc.copy())

    def run(self) -> None:
        self._interpreter.invoke()

    def outputs(self) -> list[np.ndarray]:
        details = sorted(self._interpreter.get_output_details(), key=lambda d: d["name"])
        return [self._interpreter.get_tensor(detail["index"]) for detail in details]

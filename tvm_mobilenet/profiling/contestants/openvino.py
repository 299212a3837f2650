"""OpenVINO's CPU plugin."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tvm_mobilenet.profiling.contestants.base import Contestant

if TYPE_CHECKING:
    import numpy as np


class OpenVino(Contestant):
    """Latency hint, one stream, float32: where a CPU has bf16 it would take that by default."""

    name = "openvino"
    needs = ("openvino",)
    install = "pip install openvino"
    distribution = "openvino"
    settings = (
        "CPU, INFERENCE_PRECISION_HINT f32, PERFORMANCE_HINT LATENCY, INFERENCE_NUM_THREADS = "
        "threads, NUM_STREAMS 1, ENABLE_CPU_PINNING"
    )

    def load(self, artifact: Path, threads: int) -> None:
        import openvino as ov

        compiled = ov.Core().compile_model(
            str(artifact),
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": "f32",
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_NUM_THREADS": threads,
                "NUM_STREAMS": 1,
                "ENABLE_CPU_PINNING": True,
            },
        )
        self._request = compiled.create_infer_request()
        self._outputs = len(compiled.outputs)

    def feed(self, inputs: list[np.ndarray]) -> None:
        import openvino as ov

        for i, x in enumerate(inputs):
            self._request.set_input_tensor(i, ov.Tensor(x, shared_memory=True))

    def run(self) -> None:
        self._request.infer()

    def outputs(self) -> list[np.ndarray]:
        return [self._request.get_output_tensor(i).data.copy() for i in range(self._outputs)]

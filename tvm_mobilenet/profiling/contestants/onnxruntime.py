"""ONNX Runtime's CPU provider."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tvm_mobilenet.profiling.contestants.base import Contestant

if TYPE_CHECKING:
    import numpy as np


class OnnxRuntime(Contestant):
    """All graph optimisations; I/O binding, so that no call copies or looks up names."""

    name = "onnxruntime"
    needs = ("onnxruntime",)
    install = "pip install onnxruntime"
    distribution = "onnxruntime"
    settings = (
        "CPUExecutionProvider, ORT_ENABLE_ALL, ORT_SEQUENTIAL, intra_op = threads, inter_op 1, "
        "spinning allowed, I/O binding"
    )

    def load(self, artifact: Path, threads: int) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "1")
        self._session = ort.InferenceSession(artifact, options, providers=["CPUExecutionProvider"])
        self._binding = self._session.io_binding()

    def feed(self, inputs: list[np.ndarray]) -> None:
        for info, x in zip(self._session.get_inputs(), inputs, strict=True):
            self._binding.bind_cpu_input(info.name, x)
        for info in self._session.get_outputs():
            self._binding.bind_output(info.name, "cpu")

    def run(self) -> None:
        self._session.run_with_iobinding(self._binding)

    def outputs(self) -> list[np.ndarray]:
        outputs: list[np.ndarray] = self._binding.copy_outputs_to_cpu()
        return outputs

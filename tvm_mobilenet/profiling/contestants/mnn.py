"""MNN, converted by its own wheel."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tvm_mobilenet.profiling.contestants.base import Contestant, Source

if TYPE_CHECKING:
    import numpy as np


class Mnn(Contestant):
    """Session interface, high precision: float32 throughout."""

    name = "mnn"
    needs = ("MNN",)
    install = "pip install MNN"
    distribution = "MNN"
    settings = (
        "CPU, numThread = threads, precision high, power high, memory high; the input is "
        "copied in by each call"
    )

    def convert(self, source: Source, folder: Path) -> Path:
        # The compiled converter, not the mnnconvert command around it: that one reports to its
        # makers and pip-installs a logging package, changing what is installed here.
        import _tools

        output = folder / "model.mnn"
        options = {
            "-f": "ONNX",
            "--modelFile": source.onnx,
            "--MNNModel": output,
            "--bizCode": "bench",
        }
        _tools.mnnconvert(["mnnconvert", *(str(text) for pair in options.items() for text in pair)])
        if not output.is_file():
            raise RuntimeError("mnnconvert wrote no model")
        (folder / "outputs.txt").write_text("\n".join(_output_names(source.onnx)))
        return output

    def load(self, artifact: Path, threads: int) -> None:
        import MNN

        self._interpreter = MNN.Interpreter(str(artifact))
        self._session = self._interpreter.createSession(
            {
                "backend": "CPU",
                "numThread": threads,
                "precision": "high",
                "power": "high",
                "memory": "high",
            }
        )
        self._output_names = artifact.with_name("outputs.txt").read_text().splitlines()

    def feed(self, inputs: list[np.ndarray]) -> None:
        import MNN

        tensors = self._interpreter.getSessionInputAll(self._session)
        if len(tensors) != len(inputs):
            raise RuntimeError(f"MNN sees {len(tensors)} inputs, not {len(inputs)}")
        caffe = MNN.Tensor_DimensionType_Caffe  # NCHW
        self._inputs = [
            (tensor, MNN.Tensor(x.shape, MNN.Halide_Type_Float, x, caffe))
            for tensor, x in zip(tensors.values(), inputs, strict=True)
        ]

    def run(self) -> None:
        for tensor, host in self._inputs:  # each time: MNN computes over its input's memory
            tensor.copyFrom(host)
        self._interpreter.runSession(self._session)

    def outputs(self) -> list[np.ndarray]:
        import MNN
        import numpy as np

        results = []
        for name in self._output_names:
            tensor = self._interpreter.getSessionOutput(self._session, name)
            shape, caffe = tensor.getShape(), MNN.Tensor_DimensionType_Caffe
            host = MNN.Tensor(shape, MNN.Halide_Type_Float, np.zeros(shape, np.float32), caffe)
            tensor.copyToHostTensor(host)
            results.append(np.array(host.getNumpyData()).reshape(shape))
        return results


def _output_names(model: Path) -> list[str]:
    import onnx

    return [value.name for value in onnx.load(model, load_external_data=False).graph.output]

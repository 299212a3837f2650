"""ncnn, converted by pnnx."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.profiling.contestants.base import Contestant, Source

if TYPE_CHECKING:
    import numpy as np

_REDUCED_PRECISION = (
    "use_fp16_packed",
    "use_fp16_storage",
    "use_fp16_arithmetic",
    "use_bf16_packed",
    "use_bf16_storage",
    "use_int8_inference",
)


class Ncnn(Contestant):
    """Packed layout, sgemm and Winograd convolutions as by default; no reduced precision."""

    name = "ncnn"
    needs = ("ncnn", "pnnx")
    install = "pip install ncnn pnnx"
    distribution = "ncnn"
    settings = (
        "CPU, num_threads = threads, fp16, bf16 and int8 off, packing, sgemm and Winograd on, "
        "light mode; no batch dimension: images one after another"
    )

    def convert(self, source: Source, folder: Path) -> Path:
        import pnnx

        model = folder / "model.onnx"
        shutil.copyfile(source.onnx_batch_1, model)
        # a weight file beside the model keeps the name that the model refers to
        for data in source.onnx_batch_1.parent.glob("*.data"):
            shutil.copyfile(data, folder / data.name)
        subprocess.run([pnnx.EXEC_PATH, model.name, "fp16=0"], cwd=folder, check=True)
        output = folder / "model.ncnn.param"
        if not output.is_file():
            raise RuntimeError("pnnx wrote no ncnn model")
        return output

    def load(self, artifact: Path, threads: int) -> None:
        import ncnn

        self._net = ncnn.Net()
        self._net.opt.num_threads = threads
        self._net.opt.use_vulkan_compute = False
        for option in _REDUCED_PRECISION:
            setattr(self._net.opt, option, False)
        weights = artifact.with_suffix(".bin")
        if self._net.load_param(str(artifact)) or self._net.load_model(str(weights)):
            raise RuntimeError(f"ncnn cannot load {artifact.name}")
        self._input_names = self._net.input_names()
        self._output_names = self._net.output_names()

    def feed(self, inputs: list[np.ndarray]) -> None:
        import ncnn
        import numpy as np

        # a Mat only looks at the array, so the arrays must stay alive
        self._arrays = [[np.ascontiguousarray(image) for image in x] for x in inputs]
        self._images = [
            [ncnn.Mat(image) for image in images] for images in zip(*self._arrays, strict=True)
        ]

    def run(self) -> None:
        self._results = [self._infer(images) for images in self._images]

    def _infer(self, images: list[Any]) -> list[Any]:  # of ncnn.Mat
        extractor = self._net.create_extractor()
        for name, image in zip(self._input_names, images, strict=True):
            extractor.input(name, image)
        results = []
        for name in self._output_names:
            status, mat = extractor.extract(name)
            if status:
                raise RuntimeError(f"ncnn cannot compute {name}: error {status}")
            results.append(mat)
        return results

    def outputs(self) -> list[np.ndarray]:
        import numpy as np

        return [
            np.stack([np.array(mat) for mat in mats]) for mats in zip(*self._results, strict=True)
        ]

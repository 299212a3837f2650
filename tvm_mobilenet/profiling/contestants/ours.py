"""Our own bundle, through the runtime that a user of the bundle has."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tvm_mobilenet.profiling.contestants.base import Contestant, Source

if TYPE_CHECKING:
    import numpy as np


class Ours(Contestant):
    """The bundle that `build` makes."""

    name = "tvm-mobilenet"
    needs = ("tvm_ffi",)
    install = "pip install tvm-mobilenet"
    distribution = "tvm-mobilenet"
    settings = "float32, bundle through tvm_mobilenet.runtime"

    def convert(self, source: Source, folder: Path) -> Path:
        if source.bundle is None:
            raise ValueError("the bundle is not built")
        return source.bundle

    def load(self, artifact: Path, threads: int) -> None:
        from tvm_mobilenet.runtime import Bundle

        self._bundle = Bundle.load(artifact, threads=threads)

    def feed(self, inputs: list[np.ndarray]) -> None:
        from tvm_mobilenet.runtime.bundle import aligned

        names = [tensor.name for tensor in self._bundle.inputs]
        self._inputs = dict(zip(names, map(aligned, inputs), strict=True))

    def run(self) -> None:
        self._result = self._bundle.run(self._inputs)

    def outputs(self) -> list[np.ndarray]:
        return [self._result[tensor.name] for tensor in self._bundle.outputs]

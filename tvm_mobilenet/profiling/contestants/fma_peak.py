"""The machine's float32 limit as a contestant, so that it is measured in the same run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tvm_mobilenet.profiling.contestants.base import Contestant

if TYPE_CHECKING:
    import numpy as np


class FmaPeak(Contestant):
    """Calls the library of `profiling.peak`, whose arguments are its inputs; needs no model."""

    name = "fma-peak"
    needs = ("tvm_ffi",)
    install = "pip install tvm-mobilenet"
    distribution = "apache-tvm"
    settings = "multiply-adds that stay in registers"

    def load(self, artifact: Path, threads: int) -> None:
        from tvm_mobilenet.profiling import peak
        from tvm_mobilenet.runtime import library

        self._ffi = library.tvm_ffi()
        library.use_threads(threads, exactly=True)
        self._kernel = self._ffi.load_module(artifact)[peak.KERNEL]

    def feed(self, inputs: list[np.ndarray]) -> None:
        from tvm_mobilenet.runtime.bundle import aligned

        self._arguments = [self._ffi.from_dlpack(aligned(x)) for x in inputs]

    def run(self) -> None:
        self._kernel(*self._arguments)

    def outputs(self) -> list[np.ndarray]:
        import numpy as np

        return [np.from_dlpack(argument).copy() for argument in self._arguments]

"""The machine's float32 limit as a contestant, so that it is measured in the same run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tvm_mobilenet.profiling.contestants.base import Contestant

if TYPE_CHECKING:
    import numpy as np


class FmaPeak(Contestant):
    """Calls the kernel of `tvm_mobilenet.profiling.peak`; needs no model."""

    name = "fma-peak"
    needs = ("tvm",)
    install = "pip install tvm-mobilenet"
    distribution = "apache-tvm"
    settings = "multiply-adds that stay in registers"

    def load(self, artifact: Path, threads: int) -> None:
        import numpy as np
        import tvm

        from tvm_mobilenet import targets
        from tvm_mobilenet.profiling import peak

        target = targets.detect()
        self.flops = peak.flops(target, threads)
        module = tvm.compile(peak.kernel(target, threads), target=target.tvm_target())
        self._kernel = module[peak.KERNEL]
        out = np.zeros(threads * peak.chains(target) * target.lanes, np.float32)
        self._arguments = [tvm.runtime.tensor(np.full(2, 0.5, np.float32)), tvm.runtime.tensor(out)]

    def feed(self, inputs: list[np.ndarray]) -> None:
        return None

    def run(self) -> None:
        self._kernel(*self._arguments)

    def outputs(self) -> list[np.ndarray]:
        return [self._arguments[1].numpy()]

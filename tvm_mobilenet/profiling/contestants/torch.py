"""PyTorch itself: eager, and compiled by Inductor."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.profiling.contestants.base import Contestant, Source

if TYPE_CHECKING:
    import numpy as np


class TorchEager(Contestant):
    """The module as PyTorch runs it, weights and images in channels-last layout."""

    name = "torch"
    needs = ("torch",)
    install = "pip install torch==2.13.0"
    distribution = "torch"
    settings = "eager, channels_last, inference_mode, set_num_threads(threads)"

    from_program = True

    def convert(self, source: Source, folder: Path) -> Path:
        assert source.program is not None
        return source.program

    def load(self, artifact: Path, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._inference = torch.inference_mode()
        self._inference.__enter__()  # for the life of this process: no cost inside `run`
        module: Any = torch.export.load(artifact).module()
        self._call = module.to(memory_format=torch.channels_last)

    def feed(self, inputs: list[np.ndarray]) -> None:
        import torch

        tensors = [torch.from_numpy(x) for x in inputs]
        self._inputs = [
            x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x for x in tensors
        ]

    def run(self) -> None:
        self._result = self._call(*self._inputs)

    def outputs(self) -> list[np.ndarray]:
        import torch

        single = isinstance(self._result, torch.Tensor)
        return [x.numpy() for x in ([self._result] if single else self._result)]


class TorchCompile(TorchEager):
    """Inductor with frozen weights, maximal tuning and a C++ wrapper around the kernels."""

    name = "torch-compile"
    settings = (
        "torch.compile: inductor, freezing, max_autotune, cpp_wrapper; channels_last, "
        "inference_mode, set_num_threads(threads)"
    )

    def load(self, artifact: Path, threads: int) -> None:
        import torch
        import torch._inductor.config as config

        super().load(artifact, threads)
        config.freezing = True
        config.max_autotune = True
        config.cpp_wrapper = True
        config.compile_threads = 1  # no pool of compiler processes left beside the timing
        self._call = torch.compile(self._call, dynamic=False)

"""What every contestant of a bench does: convert the model, load it, run it, show its outputs."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Source:
    """One model in the forms that contestants start from; all have static shapes."""

    onnx: Path
    onnx_batch_1: Path  # the same model for one image, for runtimes without a batch dimension
    program: Path | None  # torch.export's form; None when nobody starts from it
    bundle: Path | None  # ours; None when it is not to be timed


class Contestant(ABC):
    """One runtime at its best documented float32 settings.

    `convert` runs in a process of its own, so that a converter's memory is not counted.
    The rest runs in the process that is timed, in this order: `load`, `feed`, then `run` many
    times. `run` alone is timed; the input lies ready in the form that the runtime asks for.
    """

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]]  # modules that must be importable
    install: ClassVar[str]  # the command that installs them
    distribution: ClassVar[str]  # whose version is reported
    settings: ClassVar[str]  # what was set, for the report
    from_program: ClassVar[bool] = False  # `convert` starts from `Source.program`, not from ONNX

    @classmethod
    def missing(cls) -> tuple[str, ...]:
        """Modules that are needed and not installed."""
        return tuple(name for name in cls.needs if importlib.util.find_spec(name) is None)

    @classmethod
    def version(cls) -> str:
        """The runtime's installed version."""
        return importlib.metadata.version(cls.distribution)

    def convert(self, source: Source, folder: Path) -> Path:
        """Make what `load` takes, in `folder`; runtimes that read ONNX need nothing."""
        return source.onnx

    @abstractmethod
    def load(self, artifact: Path, threads: int) -> None:
        """Open the model for `threads` threads."""

    @abstractmethod
    def feed(self, inputs: list[np.ndarray]) -> None:
        """Put the inputs (float32, in the model's order and NCHW layout) in place for `run`.

        The arrays live as long as the contestant, so it may just keep looking at them.
        """

    @abstractmethod
    def run(self) -> None:
        """One inference; returns when the outputs are in memory."""

    @abstractmethod
    def outputs(self) -> list[np.ndarray]:
        """The outputs of the last run, in the model's order."""

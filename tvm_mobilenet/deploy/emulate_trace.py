"""What every operator of another kind of machine's runner computes, under QEMU's user mode."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tvm_mobilenet.deploy import emulate

if TYPE_CHECKING:
    import numpy as np

    from tvm_mobilenet.parity.per_layer import Trace
    from tvm_mobilenet.targets import TargetSpec


def traced(runner: Path, target: TargetSpec, inputs: Sequence[str]) -> Trace:
    """`compiler_pass.traced_entry`'s protocol by the runner's `--trace`; one process a call.

    inputs: the network's, by name in its order. Raises MissingToolError without QEMU; the trace
    itself as `emulate.run`.
    """
    command = emulate.emulator(target.mtriple, target.qemu_cpu)

    def trace(values: Mapping[str, np.ndarray], trace: np.ndarray, feed: np.ndarray) -> np.ndarray:
        import numpy as np

        with tempfile.TemporaryDirectory(prefix="tvm-mobilenet-") as folder:
            samples, outputs = Path(folder) / "samples.npz", Path(folder) / "trace"
            arrays = {f"0.input.{i}": values[name] for i, name in enumerate(inputs)}
            # the runner's reader of arrays knows floats
            arrays |= {"trace": trace, "feed": feed.astype(np.float32)}
            with samples.open("wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]
            options = ("--no-verify", "--trace", "--samples", samples, "--outputs", outputs)
            emulate.run([*command, runner, *options])
            return np.fromfile(outputs, np.float32)

    return trace

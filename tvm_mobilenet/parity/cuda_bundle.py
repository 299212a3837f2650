"""A CUDA bundle on a machine without a GPU: its host code as it is, its kernels on this CPU.

The bundle is loaded in a process whose CUDA driver is the emulator (`cuda_emulator/driver.cc`), so
that its virtual machine, its memory plan, its weights and its CUDA graph are what runs; in place of
its cubins their CUDA C runs, and a kernel that breaks a rule of CUDA is found (`cuda_emulate`).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

MULT_ADDS_A_SECOND = 8e6  # of one core of a laptop or a small server; only for the estimate
_NOTE = "done"


def run_bundle(
    bundle: Path, inputs: Sequence[Mapping[str, np.ndarray]], progress: Callable[[str], None]
) -> list[dict[str, np.ndarray]]:
    """The bundle's outputs by name for each of the inputs by name. **Runs the bundle's code.**

    bundle: for a GPU, with a host like this machine. Raises KernelError, InputError when the bundle
    does not load, MissingToolError without a C++ compiler.
    """
    import numpy as np

    from tvm_mobilenet.errors import InputError
    from tvm_mobilenet.parity.cuda_emulate import (
        MISTAKE,
        build_driver,
        build_kernels,
        granule,
        mistake,
    )
    from tvm_mobilenet.runtime import cuda, manifest

    contents = manifest.read(bundle)
    source = (bundle / cuda.DIRECTORY / cuda.SOURCE).read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory(prefix="tvm-mobilenet-cuda-") as folder:
        place = Path(folder)
        capability = int("".join(filter(str.isdigit, contents.document["target"]["gpu"]["arch"])))
        build_driver(place)
        kernels = build_kernels(source, place, 10 * capability)
        arrays = {
            f"{number}.{position}": values[tensor.name]
            for number, values in enumerate(inputs)
            for position, tensor in enumerate(contents.inputs)
        }
        np.savez(place / "inputs.npz", **arrays)  # type: ignore[arg-type]
        earlier = os.environ.get("LD_LIBRARY_PATH")  # an empty part of it would mean "here"
        environment = os.environ | {
            "LD_LIBRARY_PATH": f"{folder}{os.pathsep}{earlier}" if earlier else folder,
            "EMULATOR_CAPABILITY": str(capability),
            "EMULATOR_GRANULE": str(granule(source)),
            "EMULATOR_KERNELS": str(kernels),
        }
        command = [sys.executable, "-m", __name__, str(bundle.resolve()), folder]
        with (place / "errors").open("w+") as errors:
            with subprocess.Popen(
                command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
            ) as worker:
                assert worker.stdout is not None
                for line in worker.stdout:
                    if line.startswith(_NOTE):
                        progress(f"emulated {line.removeprefix(_NOTE).strip()}")
            errors.seek(0)
            told = errors.read()
        if worker.returncode == MISTAKE:
            raise mistake(told, kernels, source.splitlines())
        if worker.returncode:
            last = (told.strip().splitlines() or [f"exit code {worker.returncode}"])[-1]
            raise InputError(f"{bundle}: emulation failed: {last}")
        with np.load(place / "outputs.npz") as found:
            return [
                {
                    tensor.name: found[f"{number}.{position}"]
                    for position, tensor in enumerate(contents.outputs)
                }
                for number in range(len(inputs))
            ]


def seconds(bundle: Path, count: int) -> float:
    """A guess at how long `run_bundle` takes for so many inputs."""
    from tvm_mobilenet.runtime import manifest

    operators = manifest.read(bundle).document["operators"]
    return count * sum(int(each["mult_adds"]) for each in operators) / MULT_ADDS_A_SECOND


def _work(bundle: Path, place: Path) -> None:
    """In the process with the emulated driver: run every input, write the outputs."""
    import time

    import numpy as np

    from tvm_mobilenet.runtime import Bundle

    results: dict[str, np.ndarray] = {}
    with np.load(place / "inputs.npz") as inputs, Bundle.load(bundle, verify=False) as loaded:
        count = len(inputs.files) // len(loaded.inputs)
        for number in range(count):
            start = time.monotonic()
            values = {t.name: inputs[f"{number}.{i}"] for i, t in enumerate(loaded.inputs)}
            outputs = loaded.program.run(values)
            for position, tensor in enumerate(loaded.outputs):
                results[f"{number}.{position}"] = outputs[tensor.name]
            left = (count - number - 1) * (time.monotonic() - start)
            more = f"; about {left:.0f} s more" if left else ""
            sys.stdout.write(f"{_NOTE} {number + 1} of {count}{more}\n")
            sys.stdout.flush()
    np.savez(place / "outputs.npz", **results)  # type: ignore[arg-type]


if __name__ == "__main__":
    _work(Path(sys.argv[1]), Path(sys.argv[2]))

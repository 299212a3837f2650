"""Running a bundle on a device for its numbers: outputs, and every operator's result.

One upload and one session a call; see `compiler_pass.traced_entry` for what is traced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tvm_mobilenet.errors import NothingMeasuredError, UsageError
from tvm_mobilenet.parity.judge import ParityReport, judge
from tvm_mobilenet.parity.samples import Sample
from tvm_mobilenet.remote.errors import RemoteError
from tvm_mobilenet.remote.process import GRACE_SECONDS, Process
from tvm_mobilenet.remote.session import session, uploaded, use_threads
from tvm_mobilenet.remote.tracker import Grant
from tvm_mobilenet.runtime.library import TRACED_ENTRY

if TYPE_CHECKING:
    import numpy as np

    from tvm_mobilenet.profiling.remote import Device


def chosen_device(rpc: str | None, tracker: str | None, key: str | None) -> Device | None:
    """What the options --rpc, --rpc-tracker and --rpc-key name; None without any.

    Raises UsageError for options that do not name one device.
    """
    from tvm_mobilenet.profiling.remote import Device

    if rpc is not None and tracker is not None:
        raise UsageError("give either --rpc, a server, or --rpc-tracker, which knows devices")
    if rpc is None and tracker is None and key is not None:
        raise UsageError(
            "--rpc-key is a device's at a tracker or server: give --rpc-tracker or --rpc"
        )
    if tracker is not None and key is None:
        raise UsageError("say which device of the tracker's: --rpc-key KEY")
    return None if rpc is None and tracker is None else Device(rpc, tracker, key)


class Traced:
    """A bundle's library on a device. A context manager. **Runs the library's code there.**"""

    def __init__(self, device: Device, library: Path, threads: int, inputs: Sequence[str]) -> None:
        """inputs: the model's, by name, in order."""
        self._device, self._library = device, library
        self._threads, self._inputs = threads, list(inputs)
        self._process = Process()
        self.name = f"RPC at {device.rpc or device.tracker}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.close()

    def run(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The outputs in the model's order. Raises NothingMeasuredError when the device fails."""
        return self._call("main", inputs, [])

    def prove(self, references: Sequence[Sample]) -> ParityReport:
        """Judge its outputs there. Raises NothingMeasuredError when the device fails."""
        names = list(references[0].float64)
        outputs = [dict(zip(names, self.run(sample.inputs), strict=True)) for sample in references]
        return replace(judge(outputs, references), machine=self.name)

    def trace(
        self, inputs: Mapping[str, np.ndarray], trace: np.ndarray, feed: np.ndarray
    ) -> np.ndarray:
        """Every operator's result, as `runtime.bundle.Program.trace`."""
        return self._call(TRACED_ENTRY, inputs, [trace, feed])[0]

    def _call(
        self, entry: str, inputs: Mapping[str, np.ndarray], more: Sequence[np.ndarray]
    ) -> list[np.ndarray]:
        seconds = self._device.timeout_seconds
        try:
            self._process.start()  # before a device is asked for: it waits for us only seconds
            return self._process.call(
                call_entry,
                self._device.request(),
                self._library,
                entry,
                [inputs[name] for name in self._inputs],
                list(more),
                threads=self._threads,
                seconds=seconds,
                timeout=seconds + GRACE_SECONDS,
            )
        except RemoteError as error:
            raise NothingMeasuredError(str(error)) from error


def call_entry(
    grant: Grant,
    library: Path,
    entry: str,
    inputs: Sequence[np.ndarray],
    more: Sequence[np.ndarray],
    *,
    threads: int,
    seconds: float,
) -> list[np.ndarray]:
    """Call an entry of the library on inputs and further arrays; runs in the worker's process.

    Returns the further arrays as the entry left them, the outputs when there are none. Raises
    RemoteError for a library without the entry, and as `session.session` does.
    """
    import tvm
    from tvm.runtime.vm import VirtualMachine

    with session(grant, seconds) as connection, uploaded(connection, library) as module:
        use_threads(connection, threads)
        device = connection.cpu(0)
        machine = VirtualMachine(module, device)
        arrays: list[Any] = [tvm.runtime.tensor(a, device=device) for a in (*inputs, *more)]
        if more:
            try:
                function = machine[entry]
            except AttributeError as error:
                raise RemoteError(f"the bundle has no {entry}; build it again") from error
            function(*arrays)  # as it is: `set_input` would copy what is to be filled
            return [array.numpy() for array in arrays[len(inputs) :]]
        machine.set_input(entry, *arrays)
        machine.invoke_stateful(entry)
        result = machine.get_outputs(entry)
        outputs = result if isinstance(result, tuple) else (result,)
        return [tensor.numpy() for tensor in outputs]

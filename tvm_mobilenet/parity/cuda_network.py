"""A network compiled for a GPU, run kernel by kernel on this CPU: the parity gate without a GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .cuda_emulate import Emulator, Step
from .cuda_launches import Buffer, HostCode, Launch, cuda_source, lower
from .judge import ParityReport, judge
from .samples import Sample

if TYPE_CHECKING:
    import numpy as np

    from tvm_mobilenet.compiler_pass.pipeline import Compiled
    from tvm_mobilenet.deploy.network import Network, Tensor

MACHINE = "emulation of its CUDA kernels on this CPU"


@dataclass(frozen=True)
class _Value:
    """What a call wrote: its buffer in the emulator and its place in the arena, in bytes."""

    buffer: str
    begin: int
    end: int


class NetworkEmulator:
    """The kernels of a compiled network, in the order of its calls. A context manager.

    The source is that of the executable itself. Every tensor has a buffer of its own, so that an
    access beyond it is caught; that the memory plan overwrites nothing that is still read is
    checked here. Raises what `Emulator` and `lower` raise, ValueError for a wrong memory plan.
    """

    def __init__(self, compiled: Compiled) -> None:
        from tvm_mobilenet.deploy.network import plan

        self._imported = compiled.imported
        self._network = plan(compiled.planned)
        functions = lower(compiled.kernels, compiled.target).functions
        self._names, self._others, self._steps = _steps(
            self._network, functions, len(self._imported.inputs)
        )
        self._emulator = Emulator(cuda_source(compiled.executable))

    def __enter__(self) -> NetworkEmulator:
        return self

    def __exit__(self, *exception: object) -> None:
        self._emulator.close()

    @property
    def launches(self) -> tuple[Launch, ...]:
        """Kernels of one inference, in order."""
        return tuple(step.launch for step in self._steps)

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One inference: inputs by name to outputs by name. Raises KernelError."""
        values = {
            f"input {i}": inputs[info.name].astype(info.dtype, copy=False)
            for i, info in enumerate(self._imported.inputs)
        }
        values |= _weights(self._network)
        names = [self._names[number] for number in self._network.outputs]
        results = self._emulator.run(values, self._others, self._steps, names)
        shapes = [self._network.tensors[number].shape for number in self._network.outputs]
        return {
            info.name: results[name].reshape(shape)
            for info, name, shape in zip(self._imported.outputs, names, shapes, strict=True)
        }


def emulate_network(compiled: Compiled, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """One inference of a network compiled for a GPU; see `NetworkEmulator`."""
    with NetworkEmulator(compiled) as network:
        return network.run(inputs)


def prove(compiled: Compiled, references: Sequence[Sample]) -> ParityReport:
    """Judge a network compiled for a GPU by its emulated kernels.

    Raises KernelError when a kernel breaks a rule of CUDA, whatever its numbers.
    """
    with NetworkEmulator(compiled) as network:
        report = judge([network.run(sample.inputs) for sample in references], references)
    return ParityReport(report.outputs, report.samples, machine=MACHINE)


def _weights(network: Network) -> dict[str, np.ndarray]:
    numbers = [i for i, tensor in enumerate(network.tensors) if tensor.place == "Weights"]
    return {f"weights {i}": value for i, value in zip(numbers, network.weights, strict=True)}


def _steps(
    network: Network, functions: Mapping[str, HostCode], inputs: int
) -> tuple[dict[int, str], dict[str, Buffer], list[Step]]:
    """By tensor the emulator's buffer, the buffers that the network writes, the launches.

    inputs: how many of the first tensors are the network's.
    """
    names: dict[int, str] = {}
    others: dict[str, Buffer] = {}
    steps: list[Step] = []
    live = [_Value(f"input {i}", *_extent(network.tensors[i])) for i in range(inputs)]

    def read(number: int, reader: str) -> str:
        """The buffer of an argument: what was last written there, under another shape too."""
        if network.tensors[number].place == "Weights":
            return f"weights {number}"
        extent = _extent(network.tensors[number])
        found = [value.buffer for value in live if (value.begin, value.end) == extent]
        if not found or names.setdefault(number, found[0]) != found[0]:
            raise ValueError(f"the memory plan overwrites what {reader} reads")
        return found[0]

    for position, (call, arguments) in enumerate(network.calls):
        code = functions[call]
        buffers = [read(number, call) for number in arguments[:-1]]
        output = arguments[-1]
        tensor = network.tensors[output]
        begin, end = _extent(tensor)
        kept = [value for value in live if value.end <= begin or end <= value.begin]
        if any(value.buffer in buffers for value in live if value not in kept):
            raise ValueError(f"the memory plan lets {call} write over what it reads")
        names[output] = f"{call} {position}"
        others[names[output]] = Buffer(tensor.shape, tensor.dtype)
        live = [*kept, _Value(names[output], begin, end)]
        buffers.append(names[output])
        for i, temporary in enumerate(code.temporaries):
            buffers.append(f"{call} {position} temporary {i}")
            others[buffers[-1]] = temporary
        for launch in code.launches:
            steps.append(Step(launch, tuple(buffers[i] for i in launch.arguments)))
    for number in network.outputs:
        read(number, "the caller")
    return names, others, steps


def _extent(tensor: Tensor) -> tuple[int, int]:
    """First and behind the last byte of a tensor in the arena."""
    return tensor.offset, tensor.offset + tensor.bytes

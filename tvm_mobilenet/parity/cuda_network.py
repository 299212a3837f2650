"""A network compiled for a GPU, run kernel by kernel on this CPU: the parity gate without a GPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from .cuda_emulate import Emulator, Step
from .cuda_launches import Buffer, HostCode, Launch, cuda_source, lower
from .judge import ParityReport, judge
from .samples import Sample

if TYPE_CHECKING:
    import numpy as np

    from tvm_mobilenet.compiler_pass.pipeline import Compiled
    from tvm_mobilenet.deploy.network import Network, Tensor

    from .per_layer import PerLayerReport, Trace

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
        from tvm_mobilenet.compiler_pass.schedule_operators import spec_of
        from tvm_mobilenet.deploy.network import plan

        self._imported = compiled.imported
        self._network = plan(compiled.planned)
        self._results = [operator.result for operator in compiled.operators]
        self._functions = lower(compiled.kernels, compiled.target).functions
        self._outputs = {
            name: getattr(spec_of(kernel), "outputs", 1)
            for name, kernel in compiled.kernels.items()
        }
        self._names, self._others, self._steps = _steps(
            self._network, self._functions, self._outputs, len(self._imported.inputs)
        )
        gpu = compiled.target.gpu
        assert gpu is not None
        self._emulator = Emulator(cuda_source(compiled.executable), 10 * gpu.capability)

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
        values = self._given(inputs)
        names = [self._names[number] for number in self._network.outputs]
        results = self._emulator.run(values, self._others, self._steps, names)
        shapes = [self._network.tensors[number].shape for number in self._network.outputs]
        return {
            info.name: results[name].reshape(shape)
            for info, name, shape in zip(self._imported.outputs, names, shapes, strict=True)
        }

    def trace(
        self, inputs: Mapping[str, np.ndarray], trace: np.ndarray, feed: np.ndarray
    ) -> np.ndarray:
        """Every operator's result, as `compiler_pass.traced_entry` gives it on a CPU.

        Where `feed` has a number other than 0 for an operator, those after it read what `trace`
        holds in its place instead of what it made. Raises KernelError.
        """
        fed = {
            position: f"fed {position}"
            for position, result in enumerate(self._results)
            if result and result.elements and feed[position]
        }
        _, others, steps = _steps(
            self._network,
            self._functions,
            self._outputs,
            len(self._imported.inputs),
            replaced=fed,
        )
        values = self._given(inputs)
        places, made = [], []
        for position, result in enumerate(self._results):
            if result is None or not result.elements:
                continue
            place = slice(result.offset, result.offset + result.elements)
            places.append(place)
            made.append(_made(self._network, position))
            if position in fed:
                values[fed[position]] = trace[place]
        found = self._emulator.run(values, others, steps, made)
        traced = trace.copy()
        for place, name in zip(places, made, strict=True):
            traced[place] = found[name].reshape(-1)
        return traced

    def _given(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What holds something before the first launch."""
        values = {
            f"input {i}": inputs[info.name].astype(info.dtype, copy=False)
            for i, info in enumerate(self._imported.inputs)
        }
        return values | _weights(self._network)


def emulate_network(compiled: Compiled, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """One inference of a network compiled for a GPU; see `NetworkEmulator`."""
    with NetworkEmulator(compiled) as network:
        return network.run(inputs)


def prove(
    compiled: Compiled,
    references: Sequence[Sample],
    layers: Callable[[Trace], PerLayerReport] | None = None,
) -> ParityReport:
    """Judge a network compiled for a GPU by its emulated kernels.

    layers: judges its operators too, from `NetworkEmulator.trace`. Raises KernelError when a kernel
    breaks a rule of CUDA, whatever its numbers.
    """
    with NetworkEmulator(compiled) as network:
        outputs = [network.run(sample.inputs) for sample in references]
        report = judge(outputs, references, compiled.target.precision)
        operators = None if layers is None else layers(network.trace)
    return dataclasses.replace(report, machine=MACHINE, layers=operators)


def _weights(network: Network) -> dict[str, np.ndarray]:
    numbers = [i for i, tensor in enumerate(network.tensors) if tensor.place == "Weights"]
    return {f"weights {i}": value for i, value in zip(numbers, network.weights, strict=True)}


def _made(network: Network, position: int) -> str:
    """The buffer that the call at this position writes."""
    return f"{network.calls[position][0]} {position}"


def _steps(
    network: Network,
    functions: Mapping[str, HostCode],
    outputs: Mapping[str, int],
    inputs: int,
    replaced: Mapping[int, str] = MappingProxyType({}),
) -> tuple[dict[int, str], dict[str, Buffer], list[Step]]:
    """By tensor the emulator's buffer, the buffers that the network writes, the launches.

    outputs: how many of its last arguments each function writes. inputs: how many of the first
    tensors are the network's. replaced: by the position of a call, the buffer that is read for its
    result, the last of what it made.
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
        first = len(arguments) - outputs[call]
        buffers = [read(number, call) for number in arguments[:first]]
        for output in arguments[first:]:
            tensor = network.tensors[output]
            begin, end = _extent(tensor)
            kept = [value for value in live if value.end <= begin or end <= value.begin]
            if any(value.buffer in buffers for value in live if value not in kept):
                raise ValueError(f"the memory plan lets {call} write over what it reads")
            result = output == arguments[-1]  # what an operator computes is its last argument
            made = _made(network, position) if result else f"{call} {position} beside"
            others[made] = Buffer(tensor.shape, tensor.dtype)
            names[output] = replaced.get(position, made) if result else made
            live = [*kept, _Value(names[output], begin, end)]
            buffers.append(made)
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

"""A compiled network as C++ tables and one file of weights, for the runner without TVM."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.deploy.library import cpu_features, output_values
from tvm_mobilenet.parity.judge import FACTOR, FEW_VALUES, FLOOR_ULPS

if TYPE_CHECKING:
    import numpy as np

    from tvm_mobilenet.compiler_pass.pipeline import Compiled

_ALIGNMENT = 64  # bytes; kernels assume it of every tensor
_DLPACK_CODES = {"int": 0, "uint": 1, "float": 2}  # DLDataTypeCode


@dataclass(frozen=True)
class Tensor:
    """One argument of a kernel. `offset`: in bytes in its place; inputs lie in the arena too."""

    shape: tuple[int, ...]
    dtype: str
    place: str  # "Arena" or "Weights"
    offset: int

    @property
    def bytes(self) -> int:
        """Its size."""
        import numpy as np

        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass
class Network:
    """The memory plan: kernels in order with their tensors, and what the tensors lie in.

    weights: the values of the tensors in that place, in their order.
    """

    tensors: list[Tensor] = field(default_factory=list)
    calls: list[tuple[str, list[int]]] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    weights: list[np.ndarray] = field(default_factory=list)
    arena_bytes: int = 0


class Weights:
    """Constants of one or several networks in one piece of memory, equal ones once."""

    def __init__(self) -> None:
        self.arrays: list[np.ndarray] = []
        self.bytes = 0
        self._places: dict[tuple[str, tuple[int, ...], bytes], int] = {}

    def place(self, value: np.ndarray) -> int:
        """Its offset in bytes; it is added when there is none like it."""
        key = str(value.dtype), value.shape, hashlib.sha256(value.tobytes()).digest()
        if key not in self._places:
            self._places[key] = self.bytes
            self.arrays.append(value)
            self.bytes += _aligned(value.nbytes)
        return self._places[key]


def plan(main: Any, weights: Weights | None = None) -> Network:
    """The network of a Relax function after memory planning; its constants also go into `weights`.

    Raises NotImplementedError for what the runner without TVM has no word for.
    """
    from tvm import ir, relax

    network, weights = Network(), weights or Weights()
    storages: dict[Any, int] = {}
    tensors: dict[Any, int] = {}

    def add(tensor: Tensor) -> int:
        network.tensors.append(tensor)
        return len(network.tensors) - 1

    def shape(values: Iterable[Any]) -> tuple[int, ...]:
        return tuple(int(value) for value in values)

    def argument(expr: Any) -> int:
        if not isinstance(expr, ir.GenericConst):
            return tensors[expr]
        value = expr.value.numpy()
        network.weights.append(value)
        return add(Tensor(value.shape, str(value.dtype), "Weights", weights.place(value)))

    for parameter in main.params:
        own = Tensor(
            shape(parameter.ty.shape), str(parameter.ty.dtype), "Arena", network.arena_bytes
        )
        tensors[parameter] = add(own)
        network.inputs.append(tensors[parameter])
        network.arena_bytes += _aligned(own.bytes)
    for block in main.body.blocks:
        for binding in block.bindings:
            variable, value = binding.var, binding.value
            name = getattr(getattr(value, "op", None), "name", "")
            if isinstance(value, relax.Var):
                tensors[variable] = tensors[value]
            elif isinstance(value, relax.Tuple):
                tensors[variable] = [tensors[part] for part in value.fields]  # type: ignore[assignment]
            elif isinstance(value, relax.TupleGetItem):
                tensors[variable] = tensors[value.tuple_value][value.index]  # type: ignore[index]
            elif isinstance(getattr(value, "op", None), ir.GlobalVar):
                numbers = [argument(each) for each in value.args]
                network.calls.append((value.op.name_hint, numbers))
            elif name == "relax.vm.alloc_storage":
                (size,) = shape(value.args[0].values)
                storages[variable] = network.arena_bytes
                network.arena_bytes += _aligned(size)
            elif name == "relax.vm.alloc_tensor":
                offset = storages[value.args[0]] + int(value.args[1].value)
                dtype = str(variable.ty.dtype)
                tensors[variable] = add(Tensor(shape(variable.ty.shape), dtype, "Arena", offset))
            elif getattr(getattr(value, "op", None), "global_symbol", "") == "vm.builtin.reshape":
                old = network.tensors[argument(value.args[0])]
                tensors[variable] = add(
                    Tensor(shape(variable.ty.shape), old.dtype, old.place, old.offset)
                )
            elif name != "relax.vm.kill_object":
                raise NotImplementedError(f"the runner without TVM cannot do {name or value}")
    result = main.body.body
    parts = result.fields if isinstance(result, relax.Tuple) else [result]
    for part in parts:
        numbers_ = tensors[part]
        network.outputs += numbers_ if isinstance(numbers_, list) else [numbers_]
    return network


def write_sources(
    networks: Sequence[Network],
    weights: Weights,
    compiled: Compiled,
    directory: Path,
    threads: int,
) -> None:
    """Write network.cc, weights.s and weights.bin. threads: the default; 0 is all usable CPUs.

    networks: of `compiled.planned`, then of its entries.
    """
    imported = compiled.imported
    inputs = [f'{{{_text(info.name)}, ""}}' for info in imported.inputs]
    outputs = [
        f"{{{_text(info.name)}, {_text(output_values(imported.onnx, info.name))}}}"
        for info in imported.outputs
    ]
    kernels = sorted({name for network in networks for name, _ in network.calls})
    text = [
        '#include "network.h"\n\nextern "C" {\n',
        *(
            f"int {_symbol(name)}(void*, const TVMFFIAny*, int32_t, TVMFFIAny*);\n"
            for name in kernels
        ),
        "}\n\nnamespace network {\n\n",
        _table("Network", "networks", map(_network, networks)),
        _table("Named", "inputs", inputs),
        _table("Named", "outputs", outputs),
        f"const char* const name = {_text(imported.name)};\n",
        f"const char* const target = {_text(compiled.target.name)};\n",
        _table("std::string", "cpu_features", map(_text, cpu_features(compiled.target))),
        _table("int", "affinity", map(str, compiled.target.affinity)),
        f"const size_t arena_bytes = {max(network.arena_bytes for network in networks)};\n",
        f"const int threads = {threads};\n",
        f"const double factor = {float(FACTOR)!r}, floor_ulps = {float(FLOOR_ULPS)!r},\n"
        f"    few_values = {float(FEW_VALUES)!r};\n\n",
        "}  // namespace network\n",
    ]
    (directory / "network.cc").write_text("".join(text), encoding="utf-8")
    with (directory / "weights.bin").open("wb") as file:
        for weight in weights.arrays:
            file.write(weight.tobytes())
            file.write(bytes(_aligned(weight.nbytes) - weight.nbytes))
    (directory / "weights.s").write_text(
        '    .file "weights.s"\n'  # else the assembler notes the name of a temporary file
        "    .section .rodata\n    .balign 64\n    .globl network_weights\nnetwork_weights:\n"
        '    .incbin "weights.bin"\n    .byte 0\n    .section .note.GNU-stack,"",%progbits\n',
        encoding="utf-8",
    )


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _symbol(kernel: str) -> str:
    return f"__tvm_ffi_{kernel}"  # how TVM names a compiled function


def _text(value: str) -> str:
    return json.dumps(value)


def _list(values: Iterable[int]) -> str:
    return f"{{{', '.join(map(str, values))}}}"


def _network(network: Network) -> str:
    tensors = "".join(f"        {_tensor(tensor)},\n" for tensor in network.tensors)
    calls = "".join(
        f"        {{{_text(name)}, {_symbol(name)}, {_list(arguments)}}},\n"
        for name, arguments in network.calls
    )
    places = f"{_list(network.inputs)}, {_list(network.outputs)}"
    return f"{{{{\n{tensors}    }}, {{\n{calls}    }}, {places}}}"


def _tensor(tensor: Tensor) -> str:
    kind = tensor.dtype.rstrip("0123456789")
    bits = tensor.dtype[len(kind) :]
    return (
        f"{{{_list(tensor.shape)}, {{{_DLPACK_CODES[kind]}, {bits}, 1}}, "
        f"Place::k{tensor.place}, {tensor.offset}}}"
    )


def _table(kind: str, name: str, rows: Iterable[str]) -> str:
    lines = "".join(f"    {row},\n" for row in rows)
    return f"const std::vector<{kind}> {name} = {{\n{lines}}};\n\n"

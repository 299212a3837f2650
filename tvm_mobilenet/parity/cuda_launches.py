"""What TVM generates of functions for a GPU: the CUDA C, and the kernels that each one launches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tvm import tirx

    from tvm_mobilenet.targets import TargetSpec

_DYNAMIC_SHARED = "tirx.use_dyn_shared_memory"


@dataclass(frozen=True)
class Buffer:
    """A tensor in the device's memory."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel. `shared_bytes`: of dynamic shared memory.

    `arguments`: numbers of buffers: the function's parameters, then its temporaries.
    """

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int
    arguments: tuple[int, ...]


@dataclass(frozen=True)
class HostCode:
    """What the host does for one function: allocate `temporaries` and launch kernels in order."""

    parameters: tuple[Buffer, ...]
    temporaries: tuple[Buffer, ...]
    launches: tuple[Launch, ...]


@dataclass(frozen=True)
class Lowered:
    """Generated CUDA C and, by function, its host code."""

    source: str
    functions: Mapping[str, HostCode]


def lower(functions: Mapping[str, tirx.PrimFunc], target: TargetSpec) -> Lowered:
    """Compile scheduled functions for a GPU as the network's compiler does.

    Raises NotImplementedError for host code that does more than launch kernels of static shapes.
    """
    import tvm

    from tvm_mobilenet.compiler_pass.pipeline import pass_config

    captured: dict[str, HostCode] = {}

    @tvm.ir.instrument.pass_instrument
    class Capture:
        """Reads the host code after it is split off, before argument checks are added to it."""

        def run_before_pass(self, mod: tvm.IRModule, info: Any) -> None:
            if info.name != "tirx.MakePackedAPI":
                return
            for function in mod.functions.values():
                name = str(function.attrs.get("global_symbol", ""))
                if name in functions:
                    captured[name] = _host_code(function)

    named = {
        name: function.with_attr("global_symbol", name) for name, function in functions.items()
    }
    tvm_target = target.tvm_target()
    config = pass_config(target, False)
    with tvm_target, tvm.transform.PassContext(config=config, instruments=[Capture()]):
        library = tvm.compile(tvm.IRModule(named), target=tvm_target)
    return Lowered(cuda_source(library), captured)


def cuda_source(executable: Any) -> str:
    """The CUDA C in what `tvm.compile` or `relax.build` returned."""

    def search(module: Any) -> list[str]:
        found = [module.inspect_source("cuda")] if module.kind == "cuda" else []
        return found + [text for part in module.imports for text in search(part)]

    return "\n".join(search(executable.mod))


def _host_code(function: tirx.PrimFunc) -> HostCode:
    from tvm import tirx

    def described(buffer: Any) -> Buffer:
        shape = tuple(int(size) for size in buffer.ty.shape)
        return Buffer(shape, str(buffer.ty.dtype))

    numbers: dict[Any, int] = {p: i for i, p in enumerate(function.params)}
    temporaries: list[Buffer] = []
    launches: list[Launch] = []

    def visit(statement: Any) -> None:
        if isinstance(statement, tirx.SeqStmt):
            for part in statement.seq:
                visit(part)
        elif isinstance(statement, tirx.AttrStmt):
            visit(statement.body)
        elif isinstance(statement, tirx.DeclBuffer):
            numbers[statement.buffer] = numbers[statement.data.args[0]]
        elif isinstance(statement, tirx.AllocBuffer):
            numbers[statement.buffer] = len(numbers_of_buffers)
            numbers_of_buffers.append(statement.buffer)
            temporaries.append(described(statement.buffer))
        elif isinstance(statement, tirx.Evaluate) and _is_launch(statement.value):
            launches.append(_launch(statement.value, numbers))
        else:
            raise NotImplementedError(f"host code of a kernel: {statement}")

    numbers_of_buffers = list(function.params)
    visit(function.body)
    return HostCode(
        tuple(described(p) for p in function.params), tuple(temporaries), tuple(launches)
    )


def _is_launch(value: Any) -> bool:
    return getattr(getattr(value, "op", None), "name", "") == "tirx.call_ffi_kernel"


def _launch(call: Any, numbers: Mapping[Any, int]) -> Launch:
    names = [str(name) for name in call.attrs.launch_params]
    kernel, *rest = call.args
    pointers, values = rest[: len(rest) - len(names)], rest[len(rest) - len(names) :]
    extents = {name: int(value) for name, value in zip(names, values, strict=True)}
    unknown = [n for n in extents if not n.startswith(("blockIdx.", "threadIdx."))]
    if set(unknown) - {_DYNAMIC_SHARED}:
        raise NotImplementedError(f"launch parameters {', '.join(unknown)}")

    def shape(kind: str) -> tuple[int, int, int]:
        x, y, z = (extents.get(f"{kind}.{axis}", 1) for axis in "xyz")
        return x, y, z

    return Launch(
        str(kernel.value),
        shape("blockIdx"),
        shape("threadIdx"),
        extents.get(_DYNAMIC_SHARED, 0),
        tuple(numbers[pointer.args[0]] for pointer in pointers),
    )

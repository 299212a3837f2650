"""Small helpers to write kernels with TVM's IR builder: vectors, activations, loop choice.

The IR builder rather than schedule primitives, because the kernels need what no primitive gives:
edge tiles with other code than inner tiles, ragged vector tails, and prefetch of the next panel.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeAlias

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from .spec import FLOAT_BYTES, Activation

# TVM's IR builder values are dynamically typed.
Expr: TypeAlias = Any
Buffer: TypeAlias = Any

SPEC_ATTR = "tvm_mobilenet.spec"
LINE = 64 // FLOAT_BYTES  # floats of a cache line


def prim_func(
    buffers: Sequence[tuple[str, tuple[int, ...]] | tuple[str, tuple[int, ...], str]],
    body: Callable[..., None],
    attrs: dict[str, Any] | None = None,
) -> tirx.PrimFunc:
    """A PrimFunc over ``buffers`` (name, shape, type, which is float32 if it is not given).

    ``body`` is called with them, in order.

    The body stands in one opaque root block: Relax passes expect a block in every function.
    """
    with IRBuilder() as ib:
        with T.prim_func(s_tir=True):
            T.func_attr({"tirx.noalias": True, **(attrs or {})})
            args = [
                T.arg(name, T.buffer(shape, dtype[0] if dtype else "float32"))
                for name, shape, *dtype in buffers
            ]
            with T.sblock("root"):
                T.reads()
                T.writes()
                body(*args)
        return ib.get()


def vector(base: Expr, width: int) -> Expr:
    """Index of ``width`` consecutive elements from ``base``."""
    return base if width == 1 else tirx.Ramp(base, 1, width)


def splat(value: Expr, width: int) -> Expr:
    """``value`` in every one of ``width`` lanes."""
    return value if width == 1 else tirx.Broadcast(value, width)


def constant(value: float, width: int = 1) -> Expr:
    """A float32 constant in every one of ``width`` lanes."""
    return splat(tirx.const(value, "float32"), width)


def activate(x: Expr, activation: Activation, width: int) -> Expr:
    """``activation(x)`` on a vector. ``max(bound, x)`` in this order lets NaN pass, as PyTorch."""
    if activation.name == "none":
        return x
    if activation.name == "clip":
        return _clip(x, activation.lower, activation.upper, width)
    if activation.name == "hardswish":
        gate = _clip(x + constant(3.0, width), 0.0, 6.0, width)
        return x * (gate * constant(1.0 / 6.0, width))
    if activation.name == "hardsigmoid":
        line = x * constant(activation.alpha, width) + constant(activation.beta, width)
        return _clip(line, 0.0, 1.0, width)
    return constant(1.0, width) / (constant(1.0, width) + T.exp(constant(0.0, width) - x))


_BOUNDS: ContextVar[str] = ContextVar("bounds", default="max")


@contextmanager
def native_bounds() -> Iterator[None]:
    """Kernels written inside take bounds by LLVM's ``maximum`` and ``minimum``, which let NaN pass.

    They are one instruction on ARM, where ``max(bound, x)`` is a comparison and a selection; on
    x86 it is the other way round.
    """
    with _bounds("native"):
        yield


@contextmanager
def selected_bounds() -> Iterator[None]:
    """Kernels written inside take bounds by comparison and selection, which let NaN pass.

    For CUDA, whose ``max`` and ``min`` drop NaN.
    """
    with _bounds("select"):
        yield


@contextmanager
def _bounds(how: str) -> Iterator[None]:
    token = _BOUNDS.set(how)
    try:
        yield
    finally:
        _BOUNDS.reset(token)


def _clip(x: Expr, lower: float, upper: float, width: int) -> Expr:
    if lower != float("-inf"):
        x = _bound("maximum", lower, x, width)
    if upper != float("inf"):
        x = _bound("minimum", upper, x, width)
    return x


def _bound(name: str, bound: float, x: Expr, width: int) -> Expr:
    if _BOUNDS.get() == "native":
        dtype = "float32" if width == 1 else f"float32x{width}"
        return T.call_llvm_pure_intrin(dtype, f"llvm.{name}", constant(bound, width), x)
    if _BOUNDS.get() == "select":
        limit = constant(bound, width)
        return T.Select(x < limit if name == "maximum" else x > limit, limit, x)
    return {"maximum": T.max, "minimum": T.min}[name](constant(bound, width), x)


class Registers:
    """Named vector registers: ``registers[key]`` is read and assigned like an array element.

    Each is a stack buffer of its own in *global* scope: TVM puts CPU buffers of any other scope,
    and of 1 KiB or more, on the heap at every entry of the surrounding loop, which costs more than
    a small tile's arithmetic; LLVM turns these into registers.
    """

    def __init__(self, widths: Mapping[Hashable, int]) -> None:
        self._vectors = {
            key: (T.alloc_buffer((width,), "float32", scope="global"), vector(0, width))
            for key, width in widths.items()
        }

    def __iter__(self) -> Iterator[Any]:
        return iter(self._vectors)

    def __getitem__(self, key: Hashable) -> Expr:
        buffer, index = self._vectors[key]
        return buffer[index]

    def __setitem__(self, key: Hashable, value: Expr) -> None:
        buffer, index = self._vectors[key]
        T.buffer_store(buffer, value, [index])

    def address(self, key: Hashable) -> Expr:
        """Where the vector lies, for a function that LLVM inlines: it stays a register then."""
        return T.address_of(self._vectors[key][0][0])


def loop(extent: int, body: Callable[[Expr], None], *, parallel: bool = False) -> None:
    """``for i in range(extent): body(i)``; a single iteration needs no loop."""
    if extent == 1:
        body(0)
        return
    with T.parallel(0, extent) if parallel else T.serial(0, extent) as i:
        body(i)


def switch(index: Expr, cases: Sequence[tuple[int, Callable[[], None]]]) -> None:
    """Run the first case whose exclusive upper bound exceeds ``index``; the last one needs none."""
    bound, body = cases[0]
    if len(cases) == 1:
        body()
    elif isinstance(index, int):
        body() if index < bound else switch(index, cases[1:])
    else:
        with T.If(index < bound):
            with T.Then():
                body()
            with T.Else():
                switch(index, cases[1:])


def prefetch(buffer: Buffer, index: Expr) -> None:
    """Ask for the cache line of ``buffer[index]`` to be brought into L2 for reading."""
    # llvm.prefetch(address, read=0, locality=2, data cache=1); a hint, so any address is safe
    T.evaluate(
        T.call_llvm_intrin(
            "void",
            "llvm.prefetch",
            T.address_of(buffer[index]),
            T.int32(0),
            T.int32(2),
            T.int32(1),
        )
    )

"""The second kernel of squeeze-excite's gate: a dense layer on sums that `squeeze` gives in shares.

Idea
----
A dense layer as in `dense`, ``parts`` threads an output. Every block first adds up the shares of
the layer before, each thread some shares of a sum or all of several, while its weights are under
way. So few shares make it cheap, which the choice of groups of channels weighs (`squeeze_excite`).

Registers: a few float4 of weights, the shares under way and some 20. Shared memory: a float a
thread, and the hidden layer.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from ..emit import Expr, activate, constant, prim_func, selected_bounds
from ..spec import ExciteSpec, storage
from .dense import DenseKnobs, add_parts
from .dense import pack_weight as pack_dense
from .gemm import MIN_BLOCKS, REGISTERS_PER_SM, result_type
from .ir import (
    LANES,
    barrier,
    below,
    both,
    cast,
    ceil_div,
    copy4,
    launch,
    local,
    shared,
    unrolled,
    when,
)

# Of a thread. Left alone, ptxas saves them for blocks that there are not: few loads under way.
REGISTERS = 64


def build(spec: ExciteSpec, knobs: DenseKnobs) -> tirx.PrimFunc:
    """The PrimFunc ``(shares, bias, weight with whole float4 a row, bias, output)``."""
    hidden, features = spec.first.out_features, spec.second.out_features
    steps, threads = ceil_div(hidden, LANES), knobs.outputs * knobs.parts
    rounds, adders = ceil_div(steps, knobs.parts), ceil_div(steps * LANES, threads)
    spread = max(1, min(spec.parts, threads // hidden))  # threads that add up one sum's shares
    grid = ceil_div(features, knobs.outputs)
    row = knobs.parts + 1  # a float more, against bank conflicts
    buffers = [
        ("sums", (spec.batch, spec.parts * hidden), "float32"),
        ("first_bias", (hidden,), "float32"),
        ("weight", (features * steps * LANES,), storage(spec.precision)),
        ("bias", (features,), "float32"),
        ("y", (spec.batch, features), result_type(spec.second)),
    ]

    def body(shares: Any, first_bias: Any, weight: Any, bias: Any, y: Any) -> None:
        def thread(index: Expr, thread: Expr) -> None:
            image, tile = (0, index) if spec.batch == 1 else (index // grid, index % grid)
            inputs = shared(steps * LANES, "hidden")
            memory = shared(knobs.outputs * row, "parts")
            partial: Any = shared(spread * hidden, "partial") if spread > 1 else None
            factors, value = local(rounds * LANES, "factors"), local(LANES, "value")
            total = local(1, "total")
            part, own = thread % knobs.parts, thread // knobs.parts
            output = tile * knobs.outputs + own

            def there(i: Expr) -> Expr | None:
                return both(
                    below(i * knobs.parts + part, steps, rounds * knobs.parts),
                    below(output, features, grid * knobs.outputs),
                )

            def fetch(i: Expr) -> None:
                at = (output * steps + i * knobs.parts + part) * LANES
                when(there(i), lambda: copy4(factors, i * LANES, weight, at))

            unrolled(rounds, fetch)

            def add_shares(first: Expr, count: int, at: Expr) -> None:
                def share(p: Expr) -> None:
                    number = first + p

                    def one() -> None:
                        value = shares[image, number * hidden + at]
                        T.buffer_store(total, total[0] + value, [0])

                    when(below(number, spec.parts, spread * count), one)

                unrolled(count, share)

            if spread > 1:

                def spread_out() -> None:
                    T.buffer_store(total, constant(0.0), [0])
                    count = ceil_div(spec.parts, spread)
                    add_shares(thread // hidden * count, count, thread % hidden)
                    T.buffer_store(partial, total[0], [thread])

                when(below(thread, spread * hidden, threads), spread_out)
                barrier()

            def add(i: Expr) -> None:
                at = i * threads + thread

                def known() -> None:
                    T.buffer_store(total, first_bias[at], [0])
                    if spread > 1:
                        for group in range(spread):
                            value = partial[group * hidden + at]
                            T.buffer_store(total, total[0] + value, [0])
                    else:
                        add_shares(0, spec.parts, at)
                    result = activate(total[0], spec.first.activation, 1)
                    T.buffer_store(inputs, result, [at])

                if steps * LANES > hidden:  # zeros up to whole float4
                    with T.If(at < hidden):
                        with T.Then():
                            known()
                        with T.Else(), T.If(at < steps * LANES), T.Then():
                            T.buffer_store(inputs, constant(0.0), [at])
                else:
                    when(below(at, hidden, adders * threads), known)

            unrolled(adders, add)
            barrier()
            T.buffer_store(total, constant(0.0), [0])

            def multiply(i: Expr) -> None:
                def four() -> None:
                    copy4(value, 0, inputs, (i * knobs.parts + part) * LANES)
                    for k in range(LANES):
                        product = value[k] * factors[i * LANES + k]
                        T.buffer_store(total, total[0] + product, [0])

                when(there(i), four)

            unrolled(rounds, multiply)
            T.buffer_store(memory, total[0], [own * row + part])
            barrier()

            def finish() -> None:
                last = tile * knobs.outputs + thread

                def write() -> None:
                    result = add_parts(total, bias[last], memory, thread * row, knobs.parts)
                    result = activate(result, spec.second.activation, 1)
                    T.buffer_store(y, cast(result, y), [image, last])

                when(below(last, features, grid * knobs.outputs), write)

            when(thread < knobs.outputs, finish)

        with selected_bounds():
            launch(spec.batch * grid, threads, thread)

    return prim_func(buffers, body, {MIN_BLOCKS: max(1, REGISTERS_PER_SM // (threads * REGISTERS))})


def pack_weight(
    spec: ExciteSpec, knobs: DenseKnobs, weight: np.ndarray, argument: int = 2
) -> np.ndarray:
    """The second layer's weight, see `dense.pack_weight`."""
    return pack_dense(spec.second, knobs, weight)

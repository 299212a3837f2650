from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
import tvm

from tvm_mobilenet import targets
from tvm_mobilenet.profiling import peak


def _compiled(target: targets.TargetSpec, threads: int) -> tvm.runtime.Executable:
    return tvm.compile(peak.kernel(target, threads), target=target.tvm_target())


@pytest.mark.parametrize("threads", [1, 2])
def test_every_chain_computes_every_step(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak, "STEPS", 100)
    target = targets.detect()
    out = tvm.runtime.tensor(np.zeros(threads * peak.chains(target) * target.lanes, np.float32))

    # x + 3 a hundred times, from 1: a step left out or done twice shows
    factors = tvm.runtime.tensor(np.array([1.0, 3.0], np.float32))
    _compiled(target, threads)[peak.KERNEL](factors, out)

    np.testing.assert_array_equal(out.numpy(), 301.0)


@pytest.mark.parametrize("name", ["x86-64-v3", "x86-64-v4"])
def test_the_loop_stays_in_registers(name: str) -> None:
    target = targets.load(name)

    assembly = _compiled(target, 1).mod.inspect_source("asm")
    loops = re.split(r"^\.LBB\w+:", assembly, flags=re.MULTILINE)
    loop = max(loops, key=lambda code: len(re.findall("vfmadd", code)))

    register = {256: "ymm", 512: "zmm"}[target.vector_bits]
    multiply_adds = re.findall(rf"vfmadd.*%{register}", loop)
    assert len(multiply_adds) >= peak.chains(target)
    assert len(multiply_adds) % peak.chains(target) == 0
    assert not [line for line in multiply_adds if "(" in line]  # no operand from memory
    body = loop[loop.index("vfmadd") : loop.rindex("vfmadd")]
    assert not re.findall(r"v?mov[au]ps", body)


def test_flops_count_a_multiply_add_twice() -> None:
    target = dataclasses.replace(
        targets.load("x86-64-v4"), vector_bits=512, vector_registers=32, fma_units=2
    )

    assert peak.chains(target) == 16
    assert peak.flops(target, 3) == 2 * peak.STEPS * 16 * 16 * 3


def test_a_target_with_few_registers_gets_fewer_chains() -> None:
    assert peak.chains(targets.load("x86-64-v3")) == 12

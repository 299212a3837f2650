"""LLVM uses for each device the registers that its file promises, and none that it lacks."""

from __future__ import annotations

import re

import pytest

from tvm_mobilenet import targets
from tvm_mobilenet.targets import TargetSpec

DEVICES = [targets.load(name) for name in targets.names()]


@pytest.fixture
def code(spec: TargetSpec, matmul, assembly) -> str:
    """The instructions of a kernel written with vectors of the device's width."""
    text = assembly(matmul(spec.lanes), mcpu=spec.mcpu, mattr=spec.mattr)
    return "\n".join(line for line in text.splitlines() if line.startswith("\t"))


@pytest.mark.parametrize("spec", [d for d in DEVICES if d.vector_bits == 512], ids=lambda d: d.name)
def test_multiply_adds_are_512_bits_wide(code: str) -> None:
    # LLVM prefers 256 bits on many of these CPUs, but only where it vectorises by itself.
    fma = re.findall(r"\tvfmadd\w+ps\t.*", code)
    assert len(fma) >= 7 and all("%zmm" in line for line in fma)


@pytest.mark.parametrize("spec", [d for d in DEVICES if d.vector_bits == 256], ids=lambda d: d.name)
def test_256_bits_and_nothing_of_avx512(code: str) -> None:
    fma = re.findall(r"\tvfmadd\w+ps\t.*", code)
    assert len(fma) >= 7 and all("%ymm" in line for line in fma)
    assert not re.search(r"%zmm|%[xy]mm(1[6-9]|2\d|3[01])\b|%k[0-7]\b", code)


@pytest.mark.parametrize("spec", [d for d in DEVICES if d.vector_bits == 128], ids=lambda d: d.name)
def test_128_bits_and_nothing_of_avx(code: str) -> None:
    assert len(re.findall(r"\tmulps\t.*%xmm", code)) >= 7
    assert not re.search(r"%[yz]mm|\tv(mul|add|fm|mov|broadcast)\w*\t", code)

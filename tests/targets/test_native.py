"""This machine's own description, also where a virtual machine shows a CPU that it is not."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tvm_mobilenet import targets
from tvm_mobilenet.targets import native

TRIPLE = "x86_64-linux-gnu"
AVX512 = {"avx512f", "avx512vl", "avx512dq", "avx512bw"}


def features_of(cpu: str, *, without: set[str] = frozenset()) -> dict[str, bool]:
    """What a machine with that CPU, less some features, would report."""
    every = native.host_features().keys()
    has = native._llvm_features(cpu, TRIPLE) - set(without)
    return {name: name in has for name in every}


def test_detected_machine_agrees_with_the_operating_system(cli, tmp_path: Path) -> None:
    spec = targets.detect()
    assert targets.load("native") == spec
    assert (spec.name, spec.source) == ("native", "detected")
    assert 1 <= spec.cores <= len(os.sched_getaffinity(0))
    flags = set(re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.M)[1].split())
    bits = 512 if flags >= AVX512 else 256 if flags >= {"avx2", "fma"} else 128
    assert spec.vector_bits == bits
    (tmp_path / "here.toml").write_text(cli("targets", "detect").stdout)
    again = targets.load(str(tmp_path / "here.toml"))
    assert again.tvm_target().attrs["mcpu"] == spec.mcpu


def test_code_for_the_detected_machine_runs_on_it(matmul) -> None:
    import numpy as np
    import tvm

    compiled = tvm.compile(matmul(64), target=targets.detect().tvm_target())
    a, b = (
        np.random.default_rng(i).random(s, "float32") for i, s in enumerate([(7, 64), (64, 64)])
    )
    result = tvm.runtime.tensor(np.zeros((7, 64), "float32"))
    compiled["main"](tvm.runtime.tensor(a), tvm.runtime.tensor(b), result)
    np.testing.assert_allclose(result.numpy(), a @ b, rtol=1e-5)


@pytest.mark.parametrize(
    "cpu", ["x86-64-v3", "skylake-avx512", "sapphirerapids", "znver4", "znver5"]
)
def test_honest_machine_gets_its_own_name(cpu: str) -> None:
    mcpu, attributes, known = native.choose_core(cpu, TRIPLE, features_of(cpu))
    assert (mcpu, attributes) == (cpu, ())
    assert known is not None and known.mcpu == cpu


def test_feature_that_the_machine_hides_is_switched_off(matmul, assembly) -> None:
    host = features_of("skylake-avx512", without={"avx512f", *AVX512, "avx512cd"})
    mcpu, attributes, _ = native.choose_core("skylake-avx512", TRIPLE, host)
    assert (mcpu, native.vector_unit(host)) == ("skylake-avx512", (256, 16))
    assert {f"-{name}" for name in AVX512} <= set(attributes)
    text = assembly(matmul(16), mcpu=mcpu, mattr=attributes)
    assert "ymm" in text and "zmm" not in text


@pytest.mark.parametrize(
    ("named", "really", "bits"),
    [
        ("generic", "znver3", 256),
        ("nehalem", "haswell", 256),
        ("x86-64", "skylake-avx512", 512),
        ("rocketlake", "sapphirerapids", 512),
    ],
)
def test_machine_with_more_than_its_name_says(named, really, bits, matmul, assembly) -> None:
    host = features_of(really)
    mcpu, attributes, known = native.choose_core(named, TRIPLE, host)
    assert known is not None and known.vector_bits == bits
    lacking = {name for name, has in host.items() if not has}
    switched_off = {attribute.removeprefix("-") for attribute in attributes}
    assert not native._llvm_features(mcpu, TRIPLE) & lacking - switched_off
    text = assembly(matmul(16), mcpu=mcpu, mattr=attributes)
    assert "vfmadd" in text and ("zmm" in text) == (bits == 512)


@pytest.mark.parametrize(
    ("features", "unit"),
    [
        (AVX512 | {"avx2", "fma"}, (512, 32)),
        ({"avx512f", "avx2", "fma"}, (256, 16)),
        ({"avx2"}, (128, 16)),
        ({"sse4.2"}, (128, 16)),
        ({"neon"}, (128, 32)),
    ],
)
def test_vector_unit(features: set[str], unit: tuple[int, int]) -> None:
    assert native.vector_unit(dict.fromkeys(features, True)) == unit


def write_cache(cpu: Path, index: int, level: int, kind: str, size: str, ways: int) -> None:
    directory = cpu / "cache" / f"index{index}"
    directory.mkdir(parents=True)
    for name, value in (("level", level), ("type", kind), ("size", size)):
        (directory / name).write_text(f"{value}\n")
    (directory / "ways_of_associativity").write_text(f"{ways}\n")


@pytest.fixture
def sysfs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty tree in place of the kernel's, on a machine with CPUs 2 to 5."""
    monkeypatch.setattr(native, "_CPUS", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {2, 3, 4, 5})
    return tmp_path


def test_caches_of_the_first_usable_core(sysfs: Path) -> None:
    write_cache(sysfs / "cpu0", 0, 1, "Data", "999K", 1)
    for index, (level, kind, size, ways) in enumerate(
        [(1, "Data", "48K", 12), (1, "Instruction", "32K", 8), (2, "Unified", "1280K", 20)]
    ):
        write_cache(sysfs / "cpu2", index, level, kind, size, ways)
    assert native.read_caches() == native.Caches(48, 12, 1280, 0)


def test_caches_from_getconf_where_sysfs_has_none(sysfs: Path, monkeypatch) -> None:
    tools = sysfs / "bin"
    tools.mkdir()
    getconf = tools / "getconf"
    getconf.write_text(
        "#!/bin/sh\necho 'LEVEL1_DCACHE_SIZE   32768'\necho 'LEVEL1_DCACHE_ASSOC   8'\n"
        "echo 'LEVEL2_CACHE_SIZE   524288'\necho 'LEVEL3_CACHE_SIZE   '\n"
    )
    getconf.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    assert native.read_caches() == native.Caches(32, 8, 512, 0)


def test_caches_that_nothing_tells_are_said_to_be_assumed(sysfs: Path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(sysfs))
    assert native.read_caches().assumed
    assert "assumed" in targets.detect().description


def test_hyper_threads_of_one_core_count_once(sysfs: Path) -> None:
    assert native.count_cores() == 4
    for cpu, siblings in {2: "2,4", 3: "3,5", 4: "2,4", 5: "3,5"}.items():
        directory = sysfs / f"cpu{cpu}" / "topology"
        directory.mkdir(parents=True)
        (directory / "thread_siblings_list").write_text(f"{siblings}\n")
    assert native.count_cores() == 2

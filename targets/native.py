"""This machine's own description, from LLVM, the CPU's features and the operating system."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tvm_mobilenet.targets import NATIVE, TargetSpec, load, names

_CPUS = Path("/sys/devices/system/cpu")
_AVX512 = {"avx512f", "avx512vl", "avx512dq", "avx512bw"}
_FLOAT32 = _AVX512 | {"avx", "avx2", "fma", "f16c"}
_VECTOR_FEATURE = re.compile(r"avx|amx|fma$|f16c$|sse4")


@dataclass(frozen=True)
class Caches:
    """Sizes in KiB that one core can use; `assumed` when the system does not tell."""

    l1d_kib: int
    l1d_ways: int
    l2_kib: int
    l3_kib: int
    assumed: bool = False


def detect_native() -> TargetSpec:
    """The `TargetSpec` of this machine; it asks, and measures nothing."""
    from tvm.target import codegen

    triple = str(codegen.llvm_get_system_triple())
    host = host_features()
    mcpu, mattr, known = choose_core(str(codegen.llvm_get_system_cpu()), triple, host)
    bits, registers = vector_unit(host)
    caches = read_caches()
    note = "; cache sizes assumed: the system does not tell them" if caches.assumed else ""
    return TargetSpec(
        name=NATIVE,
        description=f"{_cpu_model()}, detected{note}",
        kind="llvm",
        mtriple=triple,
        mcpu=mcpu,
        mattr=mattr,
        cores=count_cores(),
        vector_bits=bits,
        vector_registers=registers,
        fma_units=known.fma_units if known and known.vector_bits == bits else 2,
        l1d_kib=caches.l1d_kib,
        l1d_ways=caches.l1d_ways,
        l2_kib=caches.l2_kib,
        l3_kib=caches.l3_kib,
        source="detected",
    )


def host_features() -> dict[str, bool]:
    """LLVM's names of CPU features, and whether this machine has each."""
    import tvm  # noqa: F401  # registers the function below
    import tvm_ffi

    features = tvm_ffi.get_global_func("tvm.codegen.llvm.GetHostCPUFeatures")()
    return {str(name): bool(present) for name, present in features.items()}


def choose_core(
    named: str, triple: str, host: dict[str, bool]
) -> tuple[str, tuple[str, ...], TargetSpec | None]:
    """LLVM's CPU name, the attributes to give with it, and the shipped device of that CPU if any.

    LLVM names a CPU by its family and model. A virtual machine may show a model that its features
    belie, in either direction. Where this machine has more vector features than the named CPU,
    the shipped device that has the most of them and none beyond them is taken instead. What the
    CPU has and this machine lacks is switched off, float32 features it has on top are switched on.
    """
    present = {name for name, has in host.items() if has}
    vector = _vector_features(present)
    architecture = triple.split("-")[0]
    shipped = {
        spec.mcpu: spec
        for spec in map(load, names())
        if spec.gpu is None and spec.mtriple.startswith(architecture)
    }
    mcpu = named
    if not vector <= _llvm_features(named, triple):
        fitting = {
            cpu: len(features)
            for cpu in (named, *shipped)
            if (features := _vector_features(_llvm_features(cpu, triple))) <= vector
        }
        mcpu = max(fitting, key=lambda cpu: fitting[cpu], default=named)
    features = _llvm_features(mcpu, triple)
    lacking = sorted(name for name, has in host.items() if name in features and not has)
    extra = sorted((present & _FLOAT32) - features)
    mattr = *(f"-{name}" for name in lacking), *(f"+{name}" for name in extra)
    return mcpu, mattr, shipped.get(mcpu)


def vector_unit(features: dict[str, bool]) -> tuple[int, int]:
    """Width in bits and number of the float32 vector registers that these features offer."""
    has = {name for name, present in features.items() if present}
    if has >= _AVX512:
        return 512, 32
    if has >= {"avx2", "fma"}:
        return 256, 16
    return 128, 32 if "neon" in has else 16


def count_cores() -> int:
    """Physical cores that this process may use: hyper-threads of one core count once."""
    usable = _usable_cpus()
    cores = set()
    for cpu in usable:
        siblings = _CPUS / f"cpu{cpu}/topology/thread_siblings_list"
        cores.add(siblings.read_text() if siblings.is_file() else str(cpu))
    return len(cores)


def read_caches() -> Caches:
    """The caches of the first usable core: from sysfs, else getconf, else assumed."""
    found = _caches_of_sysfs(_CPUS / f"cpu{min(_usable_cpus())}/cache")
    if not found and shutil.which("getconf"):
        listing = subprocess.run(["getconf", "-a"], capture_output=True, text=True, check=False)
        found = _caches_of_getconf(listing.stdout)
    if not found:
        return Caches(l1d_kib=32, l1d_ways=8, l2_kib=256, l3_kib=0, assumed=True)
    l1d_kib, l1d_ways = found["L1D"]
    l2_kib, l3_kib = found.get("L2", (256, 0))[0], found.get("L3", (0, 0))[0]
    return Caches(l1d_kib, l1d_ways or 8, l2_kib, l3_kib)


def _llvm_features(cpu: str, triple: str) -> set[str]:
    import tvm
    from tvm.target import codegen

    target = tvm.target.Target({"kind": "llvm", "mtriple": triple, "mcpu": cpu})
    return {str(name) for name in codegen.llvm_get_cpu_features(target)}


def _vector_features(features: set[str]) -> set[str]:
    return {name for name in features if _VECTOR_FEATURE.match(name)}


def _usable_cpus() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _caches_of_sysfs(directory: Path) -> dict[str, tuple[int, int]]:
    """L1D, L2 and L3 as (KiB, ways); empty when there is no first level."""
    found = {}
    for index in sorted(directory.glob("index*")):
        level, kind = (index / "level").read_text().strip(), (index / "type").read_text().strip()
        size = re.fullmatch(r"(\d+)K", (index / "size").read_text().strip())
        ways = index / "ways_of_associativity"
        if size and kind != "Instruction":
            name = "L1D" if level == "1" else f"L{level}"
            found[name] = int(size[1]), int(ways.read_text()) if ways.is_file() else 0
    return found if "L1D" in found else {}


def _caches_of_getconf(listing: str) -> dict[str, tuple[int, int]]:
    """The same from `getconf -a`, which gives bytes."""
    table = dict(re.findall(r"^(LEVEL\w+)\s+(\d+)$", listing, flags=re.MULTILINE))
    found = {}
    for name, key in (("L1D", "LEVEL1_DCACHE"), ("L2", "LEVEL2_CACHE"), ("L3", "LEVEL3_CACHE")):
        size = int(table.get(f"{key}_SIZE", 0))
        if size:
            found[name] = size // 1024, int(table.get(f"{key}_ASSOC", 0))
    return found if "L1D" in found else {}


def _cpu_model() -> str:
    """The CPU's name as the operating system shows it."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.is_file() else ""
    model = re.search(r"^model name\s*:\s*(.+)$", text, flags=re.MULTILINE)
    return model[1].strip() if model else platform.processor() or platform.machine()

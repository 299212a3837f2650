"""Whether code built for a CPU can run on this machine. Standard library only."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

# LLVM's name of a feature that code for float32 networks may use -> Linux's name in /proc/cpuinfo.
X86_FEATURES = {
    "sse3": "pni",
    "ssse3": "ssse3",
    "sse4.1": "sse4_1",
    "sse4.2": "sse4_2",
    "popcnt": "popcnt",
    "movbe": "movbe",
    "bmi": "bmi1",
    "bmi2": "bmi2",
    "lzcnt": "abm",
    "avx": "avx",
    "f16c": "f16c",
    "fma": "fma",
    "avx2": "avx2",
    "avxvnni": "avx_vnni",
    "avx512f": "avx512f",
    "avx512bw": "avx512bw",
    "avx512cd": "avx512cd",
    "avx512dq": "avx512dq",
    "avx512vl": "avx512vl",
    "avx512bf16": "avx512_bf16",
    "avx512bitalg": "avx512_bitalg",
    "avx512fp16": "avx512_fp16",
    "avx512ifma": "avx512ifma",
    "avx512vbmi": "avx512vbmi",
    "avx512vbmi2": "avx512_vbmi2",
    "avx512vnni": "avx512_vnni",
    "avx512vpopcntdq": "avx512_vpopcntdq",
}
ARM_FEATURES = {
    "neon": "asimd",
    "rdm": "asimdrdm",
    "fullfp16": "asimdhp",
    "dotprod": "asimddp",
    "fp16fml": "asimdfhm",
    "lse": "atomics",
    "crc": "crc32",
    "sve": "sve",
    "sve2": "sve2",
    "bf16": "bf16",
    "i8mm": "i8mm",
}
ARMV7_FEATURES = {"neon": "neon", "vfp4": "vfpv4", "hwdiv-arm": "idiva"}
_ARCHITECTURES = {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64"}


def architecture(machine: str | None = None) -> str:
    """The architecture of a machine name or LLVM triple (default: this machine) in one spelling."""
    name = (machine or platform.machine()).split("-")[0].lower()
    return "armv7" if name.startswith("armv7") else _ARCHITECTURES.get(name, name)


def feature_names(target_architecture: str) -> dict[str, str]:
    """LLVM's to Linux's feature names; empty for an architecture that this table lacks."""
    tables = {"x86_64": X86_FEATURES, "aarch64": ARM_FEATURES, "armv7": ARMV7_FEATURES}
    return tables.get(target_architecture, {})


@cache
def cpu_features() -> frozenset[str] | None:
    """This CPU's features by Linux's names; None where the system does not tell."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return None
    found = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", cpuinfo.read_text(), flags=re.MULTILINE)
    return frozenset(found[1].split()) if found else None


def why_not_here(target_architecture: str, features: Iterable[str]) -> str | None:
    """Why code for that architecture with those features (Linux's names) cannot run; else None."""
    here = architecture()
    if target_architecture != here:
        return f"it is {target_architecture} code and this machine is {here}"
    present = cpu_features()
    missing = [] if present is None else [name for name in features if name not in present]
    if missing:
        return f"this CPU lacks {', '.join(missing)}"
    return None

"""What can be said of a GPU's kernels without running them: resources, occupancy, launches."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tvm_mobilenet.deploy.cuda import read_kernels
from tvm_mobilenet.errors import InputError
from tvm_mobilenet.runtime import manifest
from tvm_mobilenet.runtime.ptxas import Resources
from tvm_mobilenet.targets import GpuSpec, load, names

_WARP = 32  # threads
_REGISTER_UNIT = 256  # registers are given to warps in such steps
_WARP_UNIT = 4  # an SM has four partitions: as many warps share its registers evenly


@dataclass(frozen=True)
class Occupancy:
    """How many blocks of a kernel an SM holds, what sets that, and the share of its warps."""

    blocks_per_sm: int
    limit: str  # "threads", "registers", "shared" or "blocks"
    share: float  # resident warps over the most that an SM holds


@dataclass(frozen=True)
class StaticKernel:
    """One kernel on one architecture; `shared_bytes` of a block, static and dynamic together.

    `launches`: in an inference; `waves`: blocks over those that the whole GPU holds at once.
    """

    arch: str
    operator: str
    kernel: str
    launches: int
    blocks: int
    threads: int
    registers: int
    stack_bytes: int
    spill_bytes: int
    shared_bytes: int
    blocks_per_sm: int
    occupancy: float
    limit: str
    waves: float


@dataclass(frozen=True)
class StaticProfile:
    """A bundle's kernels in the order of their first launch, architecture by architecture."""

    bundle: Path
    model: str
    target: str
    precision: str
    cuda_graph: bool
    launches: int  # of an inference
    kernels: tuple[StaticKernel, ...]


def profile_static(bundle: Path, architectures: Sequence[str] = ()) -> StaticProfile:
    """Read what ptxas said of a bundle's kernels; nothing is run, no GPU is needed.

    architectures: those to show, all of the bundle if none. Raises InputError for a bundle that is
    not for a GPU, or lacks an architecture.
    """
    contents = manifest.read(bundle)
    manifest.check_files(bundle, contents)
    document = read_kernels(bundle)
    there = list(document["resources"])
    for arch in architectures:
        if arch not in there:
            raise InputError(f"{bundle}: has no code for {arch}, only for {', '.join(there)}")
    target = contents.document["target"]
    kernels = [
        kernel
        for arch in (architectures or there)
        for kernel in kernels_of(document, arch, gpu_of(arch, target))
    ]
    return StaticProfile(
        bundle=bundle,
        model=str(contents.document["model"]["name"]),
        target=str(target["name"]),
        precision=str(document["precision"]),
        cuda_graph=bool(document["cuda_graph"]),
        launches=len(document["launches"]),
        kernels=tuple(kernels),
    )


def gpu_of(arch: str, target: dict[str, Any]) -> GpuSpec:
    """The GPU of an architecture: the bundle's own, else a shipped one; InputError for neither."""
    own = GpuSpec(**target["gpu"])
    if own.arch == arch:
        return own
    for name in names():
        gpu = load(name).gpu
        if gpu is not None and gpu.arch == arch:
            return gpu
    raise InputError(f"no target describes {arch}; 'tvm-mobilenet targets' lists them")


def occupancy(threads: int, registers: int, shared_bytes: int, gpu: GpuSpec) -> Occupancy:
    """Theoretical occupancy, as NVIDIA's occupancy calculator (cuda_occupancy.h) has it.

    threads: of a block; registers: of a thread; shared_bytes: of a block. The SM is taken to give
    as much of its memory to shared memory as it can.
    """
    warps = math.ceil(threads / _WARP)
    most_warps = gpu.threads_per_sm // _WARP
    per_warp = math.ceil(registers * _WARP / _REGISTER_UNIT) * _REGISTER_UNIT
    by_registers = gpu.registers_per_sm // per_warp if per_warp else most_warps
    recent = gpu.capability >= 80
    reserved, unit = (1024, 128) if recent else (0, 256)
    per_block = math.ceil((shared_bytes + reserved) / unit) * unit
    limits = {
        "threads": most_warps // warps,
        "registers": by_registers // _WARP_UNIT * _WARP_UNIT // warps,
        "shared": gpu.shared_kib_per_sm * 1024 // per_block if per_block else gpu.blocks_per_sm,
        "blocks": gpu.blocks_per_sm,
    }
    limit = min(limits, key=lambda name: limits[name])
    blocks = limits[limit]
    return Occupancy(blocks, limit, blocks * warps / most_warps)


def write_csv(profile: StaticProfile, path: Path) -> None:
    """The kernels with all columns; InputError when the file cannot be written."""
    from tvm_mobilenet.profiling.exports import check_writable

    check_writable(path, "--csv")
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = [asdict(kernel) for kernel in profile.kernels]
        writer = csv.DictWriter(file, list(StaticKernel.__dataclass_fields__))
        writer.writeheader()
        writer.writerows(rows)


def kernels_of(document: Any, arch: str, gpu: GpuSpec) -> list[StaticKernel]:
    """The kernels of a `kernels.json` on one architecture, in the order of their first launch."""
    count: dict[str, int] = {}
    first: dict[str, Any] = {}
    for launch in document["launches"]:
        key = json.dumps([launch["kernel"], launch["grid"], launch["block"]])
        count[key] = count.get(key, 0) + 1
        first.setdefault(key, launch)
    found = []
    for key, launch in first.items():
        used = Resources(**document["resources"][arch][launch["kernel"]])
        threads, blocks = math.prod(launch["block"]), math.prod(launch["grid"])
        shared = used.shared_bytes + launch["dynamic_shared_bytes"]
        resident = occupancy(threads, used.registers, shared, gpu)
        found.append(
            StaticKernel(
                arch=arch,
                operator=launch["symbol"],
                kernel=launch["kernel"],
                launches=count[key],
                blocks=blocks,
                threads=threads,
                registers=used.registers,
                stack_bytes=used.stack_bytes,
                spill_bytes=used.spill_store_bytes + used.spill_load_bytes,
                shared_bytes=shared,
                blocks_per_sm=resident.blocks_per_sm,
                occupancy=resident.share,
                limit=resident.limit,
                waves=blocks / (max(resident.blocks_per_sm, 1) * gpu.sms),
            )
        )
    return found

"""Hardware as data: one TOML file a device, and this machine's own description.

To add a device, add a TOML file here; see `TargetSpec` for the keys.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.errors import InputError, UsageError
from tvm_mobilenet.schedules.spec import PRECISIONS, Precision
from tvm_mobilenet.toml_file import TomlFile, read_toml

if TYPE_CHECKING:
    import tvm

__all__ = ["GpuSpec", "TargetSpec", "at_precision", "detect", "load", "names"]

_DIRECTORY = Path(__file__).parent
NATIVE = "native"
ARCH = r"sm_\d{2,3}[af]?"  # NVIDIA's names of GPU architectures
_ARM = re.compile(r"aarch64(_be|_32)?|arm64(e|_32)?|(arm|thumb)(eb)?(v\d\w*)?")  # LLVM's names


@dataclasses.dataclass(frozen=True)
class GpuSpec:
    """An NVIDIA GPU: the `[gpu]` table of a device's TOML file.

    Limits are those of the compute capability (CUDA C++ Programming Guide, "Technical
    Specifications per Compute Capability"); the rest is one product's data sheet, named in the
    device's description. Rates count what one SM starts in a clock; tensor cores with float32
    sums and no sparsity, 0 where there are none.
    """

    arch: str  # "sm_90": what NVRTC's --gpu-architecture takes
    sms: int  # streaming multiprocessors
    clock_mhz: int  # the highest
    bandwidth_gb_s: int  # of the GPU's memory, in 10^9 bytes a second
    l2_kib: int
    shared_kib_per_sm: int
    shared_kib_per_block: int  # opt-in, dynamic; static shared memory stops at 48 KiB
    threads_per_sm: int
    threads_per_block: int
    blocks_per_sm: int
    registers_per_sm: int  # of 32 bits
    registers_per_thread: int
    fp32_fma: int  # float32 multiply-adds
    tf32_fma: int  # the same by tensor cores on tf32 inputs
    f16_fma: int  # the same by tensor cores on float16 inputs
    # each kernel starts while the one before it ends, and waits for it (sm_90 on): see docs/cuda.md
    programmatic_launch: bool = False

    STATIC_SHARED_KIB = 48  # of a block without opting in, on every architecture

    @property
    def capability(self) -> int:
        """The compute capability times ten: 90 for sm_90."""
        return int(re.sub(r"\D", "", self.arch))

    def peak_gflops(self, precision: str) -> float:
        """10^9 FLOPs a second at the highest clock in "float32", "tf32" or "float16"."""
        rates = {"float32": self.fp32_fma, "tf32": self.tf32_fma, "float16": self.f16_fma}
        return 2 * rates[precision] * self.sms * self.clock_mhz / 1e3


@dataclasses.dataclass(frozen=True)
class TargetSpec:
    """One device. Every field but `source` and `precision` is a key of its TOML file.

    With `gpu` the networks run there and the other fields describe the host.

    Cache sizes are what one core can use, its own or shared (`l3_kib` 0: there is none).
    `vector_bits` is the widest float vector that code for this target may use,
    `vector_registers` how many of them the instruction set names, `fma_units` how many
    multiply-adds of that width one core starts in a cycle.

    Keys with a default may be left out. `cores` counts only cores of this kind: where a chip has
    two kinds, `affinity` has the operating system's numbers of these (empty: no thread is bound).

    `precision` is what networks are compiled for, see `at_precision`.
    """

    name: str
    description: str
    kind: str  # "llvm", or "cuda" with gpu
    mtriple: str
    mcpu: str
    mattr: tuple[str, ...]
    cores: int
    vector_bits: int
    vector_registers: int
    fma_units: int
    l1d_kib: int
    l1d_ways: int
    l2_kib: int
    l3_kib: int
    source: str  # the file it was read from, or "detected"
    issue_width: int = 0  # instructions that a core starts in a cycle; 0: not known
    in_order: bool = False  # a core that waits for each instruction's operands in program order
    lacks: tuple[str, ...] = ()  # LLVM's names of features that code must not use here
    affinity: tuple[int, ...] = ()
    qemu_cpu: str = ""  # what QEMU's -cpu takes: no instruction beyond this core's; "": none
    mca_cpu: str = ""  # llvm-mca's nearest model of the core; "": its own, mcpu
    gpu: GpuSpec | None = None
    precision: Precision = "float32"

    @property
    def lanes(self) -> int:
        """float32 values in one vector."""
        return self.vector_bits // 32

    def tvm_target(self) -> tvm.target.Target:
        """This device as TVM's target; InputError when LLVM does not know the CPU's name."""
        import tvm

        if self.gpu is None:
            return self.host_target()
        gpu = {
            "kind": "cuda",
            "arch": self.gpu.arch,
            "max_shared_memory_per_block": self.gpu.STATIC_SHARED_KIB * 1024,
            "max_threads_per_block": self.gpu.threads_per_block,
            "registers_per_block": self.gpu.registers_per_sm,
        }
        return tvm.target.Target(gpu, host=self.host_target())

    def host_target(self) -> tvm.target.Target:
        """The CPU alone as TVM's target; InputError when LLVM does not know its name."""
        import tvm
        from tvm.target import codegen

        name = self.mtriple.split("-")[0]
        if name.startswith(("arm", "aarch64", "thumb")) and not _ARM.fullmatch(name):
            raise InputError(  # LLVM would end the process
                f"{self.source}: mtriple: LLVM has no architecture '{name}'; 32-bit ARM is armv7a, "
                "64-bit ARM aarch64"
            )
        if not codegen.llvm_is_valid_cpu(self.mcpu, self.mtriple):
            raise InputError(
                f"{self.source}: mcpu: LLVM has no CPU '{self.mcpu}' for {self.mtriple}"
            )
        core = {"kind": "llvm", "mtriple": self.mtriple, "mcpu": self.mcpu}
        if self.mtriple.endswith("hf"):  # floats are passed in NEON registers
            core["mfloat-abi"] = "hard"
        if not self.mtriple.startswith(("x86_64", "i686")) and self.mcpu != "generic":
            # LLVM would compile what the core lacks without a word
            has = {str(name) for name in codegen.llvm_get_cpu_features(tvm.target.Target(core))}
            for attribute in self.mattr:
                if attribute.startswith("+") and attribute[1:] not in has:
                    raise InputError(f"{self.source}: mattr: {self.mcpu} has no {attribute[1:]}")
        return tvm.target.Target({**core, "mattr": list(self.mattr), "num-cores": self.cores})

    def to_toml(self, *, defaults: bool = True) -> str:
        """The text of this device's TOML file; without `defaults` what is not known is left out."""
        told = [k for k in _KEYS if defaults or getattr(self, k) != _DEFAULTS.get(k)]
        lines = [f"{key} = {_toml(getattr(self, key))}\n" for key in told]
        if self.gpu is not None:
            lines.append(f"\n[{_GPU}]\n")
            told = [k for k in _GPU_KEYS if defaults or getattr(self.gpu, k) != _DEFAULTS.get(k)]
            lines += [f"{key} = {_toml(getattr(self.gpu, key))}\n" for key in told]
        return "".join(lines)


_GPU = "gpu"  # the only table of a device's file
PROGRAMMATIC_CAPABILITY = 90  # the least compute capability, times ten, of programmatic launches
_KEYS = {
    f.name: f.type
    for f in dataclasses.fields(TargetSpec)
    if f.name not in ("source", "precision", _GPU)
}
_GPU_KEYS = {f.name: f.type for f in dataclasses.fields(GpuSpec)}
_DEFAULTS = {
    f.name: f.default
    for f in (*dataclasses.fields(TargetSpec), *dataclasses.fields(GpuSpec))
    if f.default is not dataclasses.MISSING
}
_WANTED = {
    "str": "a string",
    "int": "a whole number",
    "bool": "true or false",
    "tuple[int, ...]": "a list of whole numbers",
    "tuple[str, ...]": "a list of strings",
}


def names() -> list[str]:
    """The names of the devices that come with the package, sorted."""
    return sorted(path.stem for path in _DIRECTORY.glob("*.toml"))


def load(name_or_path: str) -> TargetSpec:
    """The device of that name, of that TOML file, or `native`: this machine.

    Raises InputError: an unknown name lists the nearest ones, a bad file says line and key.
    """
    if name_or_path == NATIVE:
        return detect()
    if name_or_path in names():
        return _from_toml(read_toml(_DIRECTORY / f"{name_or_path}.toml"))
    if name_or_path.endswith(".toml") or "/" in name_or_path:
        return _from_toml(read_toml(Path(name_or_path)))
    near = difflib.get_close_matches(name_or_path.lower(), [NATIVE, *names()], cutoff=0.4)
    hint = f"did you mean {', '.join(near)}?" if near else "'targets' lists the names"
    raise InputError(f"unknown target '{name_or_path}'; {hint}")


def at_precision(target: TargetSpec, precision: Precision) -> TargetSpec:
    """The device, for networks in "float32", "tf32" or "float16".

    tf32 rounds the factors of matrix products to 10 bits of mantissa; float16 keeps activations and
    weights in it, with sums and activation functions in float32. Raises UsageError for an unknown
    precision or a target that is no GPU, InputError for a GPU without tensor cores for it.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"precision must be one of {', '.join(PRECISIONS)}, not '{precision}'")
    if precision != "float32":
        if target.gpu is None:
            raise UsageError(f"--precision goes with a GPU; {target.name} is none")
        if not target.gpu.peak_gflops(precision):
            raise InputError(f"{target.name} has no tensor cores for {precision}; use float32")
    return dataclasses.replace(target, precision=precision)


def detect() -> TargetSpec:
    """This machine, as LLVM, the operating system and the CPU's features describe it."""
    from tvm_mobilenet.targets.native import detect_native

    return detect_native()


def _toml(value: Any) -> str:
    """A value as TOML text."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return str(value)


def _from_toml(file: TomlFile) -> TargetSpec:
    _refuse_unknown(file, file.table, [*_KEYS, _GPU], "")
    values = {key: _value(file, file.table, key, kind) for key, kind in _KEYS.items()}
    spec = TargetSpec(**values, gpu=_gpu(file), source=str(file.path))
    _check(file, spec)
    return spec


def _gpu(file: TomlFile) -> GpuSpec | None:
    table = file.table.get(_GPU)
    if table is None:
        return None
    if not isinstance(table, dict):
        raise file.error(_GPU, f"must be a table, not {table!r}")
    _refuse_unknown(file, table, list(_GPU_KEYS), _GPU)
    gpu = GpuSpec(**{k: _value(file, table, k, kind, _GPU) for k, kind in _GPU_KEYS.items()})
    _check_gpu(file, gpu)
    return gpu


def _refuse_unknown(
    file: TomlFile, table: Mapping[str, Any], known: Sequence[str], name: str
) -> None:
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise file.error(key, f"unknown key{hint}", name)


def _value(
    file: TomlFile, table: Mapping[str, Any], key: str, annotation: Any, name: str = ""
) -> Any:
    if key not in table:
        if key in _DEFAULTS:
            return _DEFAULTS[key]
        raise file.error(key, "this key is missing", name)
    value = table[key]
    if annotation.startswith("tuple") and isinstance(value, list):
        kind = str if "str" in annotation else int
        if all(type(item) is kind for item in value):
            return tuple(value)
    elif type(value).__name__ == annotation:
        return value
    raise file.error(key, f"must be {_WANTED[annotation]}, not {value!r}", name)


def _check_gpu(file: TomlFile, gpu: GpuSpec) -> None:
    """Refuse values that no GPU has."""
    if not re.fullmatch(ARCH, gpu.arch):
        raise file.error("arch", f"must be like sm_90, not '{gpu.arch}'", _GPU)
    for key in (key for key, kind in _GPU_KEYS.items() if kind == "int"):
        least = 0 if key in ("tf32_fma", "f16_fma") else 1
        if getattr(gpu, key) < least:
            raise file.error(key, f"must be at least {least}", _GPU)
    if gpu.programmatic_launch and gpu.capability < PROGRAMMATIC_CAPABILITY:
        raise file.error("programmatic_launch", f"needs sm_{PROGRAMMATIC_CAPABILITY}", _GPU)
    if gpu.shared_kib_per_block > gpu.shared_kib_per_sm:
        raise file.error("shared_kib_per_block", "must be at most shared_kib_per_sm", _GPU)
    if gpu.threads_per_block > gpu.threads_per_sm:
        raise file.error("threads_per_block", "must be at most threads_per_sm", _GPU)


def _check(file: TomlFile, spec: TargetSpec) -> None:
    """Refuse values that no device has."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", spec.name):
        raise file.error("name", "must be lower-case letters, digits and . _ -")
    if spec.kind not in ("llvm", "cuda"):
        raise file.error("kind", f"'{spec.kind}' is not a kind of target; use 'llvm' or 'cuda'")
    if (spec.kind == "cuda") != (spec.gpu is not None):
        raise file.error("kind", "'cuda' and a [gpu] table go together")
    for attribute in spec.mattr:
        if not re.fullmatch(r"[+-][a-z0-9._-]+", attribute):
            raise file.error("mattr", f"'{attribute}' must be +feature or -feature")
        if attribute.startswith("+") and attribute[1:] in spec.lacks:
            raise file.error("mattr", f"{spec.name} lacks {attribute[1:]}")
    if spec.vector_bits not in (128, 256, 512):
        raise file.error("vector_bits", f"must be 128, 256 or 512, not {spec.vector_bits}")
    for key in ("cores", "vector_registers", "fma_units", "l1d_kib", "l1d_ways", "l2_kib"):
        if getattr(spec, key) < 1:
            raise file.error(key, "must be at least 1")
    for key in ("l3_kib", "issue_width"):
        if getattr(spec, key) < 0:
            raise file.error(key, "must be at least 0")
    if any(cpu < 0 for cpu in spec.affinity):
        raise file.error("affinity", "the numbers of CPUs must be at least 0")
    if spec.affinity and len(set(spec.affinity)) != spec.cores:
        raise file.error("affinity", f"must name as many CPUs as there are cores, {spec.cores}")

"""Hardware as data: one TOML file a device, and this machine's own description.

To add a device, add a TOML file here; see `TargetSpec` for the keys.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.errors import InputError
from tvm_mobilenet.toml_file import TomlFile, read_toml

if TYPE_CHECKING:
    import tvm

__all__ = ["TargetSpec", "detect", "load", "names"]

_DIRECTORY = Path(__file__).parent
NATIVE = "native"


@dataclasses.dataclass(frozen=True)
class TargetSpec:
    """One device. Every field but `source` is a key of its TOML file; none may be left out.

    Cache sizes are what one core can use, its own or shared (`l3_kib` 0: there is none).
    `vector_bits` is the widest float vector that code for this target may use,
    `vector_registers` how many of them the instruction set names, `fma_units` how many
    multiply-adds of that width one core starts in a cycle.
    """

    name: str
    description: str
    kind: str  # "llvm"
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

    @property
    def lanes(self) -> int:
        """float32 values in one vector."""
        return self.vector_bits // 32

    def tvm_target(self) -> tvm.target.Target:
        """This device as TVM's target; InputError when LLVM does not know the CPU's name."""
        import tvm
        from tvm.target import codegen

        if not codegen.llvm_is_valid_cpu(self.mcpu, self.mtriple):
            raise InputError(
                f"{self.source}: mcpu: LLVM has no CPU '{self.mcpu}' for {self.mtriple}"
            )
        return tvm.target.Target(
            {
                "kind": self.kind,
                "mtriple": self.mtriple,
                "mcpu": self.mcpu,
                "mattr": list(self.mattr),
                "num-cores": self.cores,
            }
        )

    def to_toml(self) -> str:
        """The text of this device's TOML file."""
        lines = []
        for key in _KEYS:
            value = getattr(self, key)
            text = f"[{', '.join(map(_quoted, value))}]" if isinstance(value, tuple) else value
            lines.append(f"{key} = {_quoted(value) if isinstance(value, str) else text}\n")
        return "".join(lines)


_KEYS = {f.name: f.type for f in dataclasses.fields(TargetSpec) if f.name != "source"}


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


def detect() -> TargetSpec:
    """This machine, as LLVM, the operating system and the CPU's features describe it."""
    from tvm_mobilenet.targets.native import detect_native

    return detect_native()


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _from_toml(file: TomlFile) -> TargetSpec:
    for key in file.table:
        if key not in _KEYS:
            near = difflib.get_close_matches(key, _KEYS, n=1)
            raise file.error(key, f"unknown key{f'; did you mean {near[0]}?' if near else ''}")
    values = {key: _value(file, key, annotation) for key, annotation in _KEYS.items()}
    spec = TargetSpec(**values, source=str(file.path))
    _check(file, spec)
    return spec


def _value(file: TomlFile, key: str, annotation: Any) -> Any:
    if key not in file.table:
        raise file.error(key, "this key is missing")
    value = file.table[key]
    if annotation == "str" and isinstance(value, str):
        return value
    if annotation == "int" and isinstance(value, int) and not isinstance(value, bool):
        return value
    strings = isinstance(value, list) and all(isinstance(item, str) for item in value)
    if annotation == "tuple[str, ...]" and strings:
        return tuple(value)
    wanted = {"str": "a string", "int": "a whole number"}.get(annotation, "a list of strings")
    raise file.error(key, f"must be {wanted}, not {value!r}")


def _check(file: TomlFile, spec: TargetSpec) -> None:
    """Refuse values that no device has."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", spec.name):
        raise file.error("name", "must be lower-case letters, digits and . _ -")
    if spec.kind != "llvm":
        raise file.error("kind", f"'{spec.kind}' is not a kind of target; use 'llvm'")
    for attribute in spec.mattr:
        if not re.fullmatch(r"[+-][a-z0-9._-]+", attribute):
            raise file.error("mattr", f"'{attribute}' must be +feature or -feature")
    if spec.vector_bits not in (128, 256, 512):
        raise file.error("vector_bits", f"must be 128, 256 or 512, not {spec.vector_bits}")
    for key in ("cores", "vector_registers", "fma_units", "l1d_kib", "l1d_ways", "l2_kib"):
        if getattr(spec, key) < 1:
            raise file.error(key, "must be at least 1")
    if spec.l3_kib < 0:
        raise file.error("l3_kib", "must be at least 0")

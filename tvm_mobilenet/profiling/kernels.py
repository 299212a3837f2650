"""What the compiler made of each operator: its TVMScript and its machine code, from the bundle."""

from __future__ import annotations

import re
import shutil
import subprocess
import zipfile
from dataclasses import dataclass
from pathlib import Path

from tvm_mobilenet.runtime import host, manifest

_HEADING = re.compile(r"^[0-9a-f]+ <(.+)>:$")
_SUFFIX = "_compute_"  # TVM's: the function itself, behind the wrapper that checks arguments


@dataclass(frozen=True)
class Kernel:
    """One compiled function; a text that is missing is None, and its reason says why."""

    source: str | None
    source_missing: str
    assembly: str | None
    assembly_missing: str


def read_kernels(bundle: Path, symbols: list[str]) -> dict[str, Kernel]:
    """Source and machine code of each symbol in a bundle whose files were checked."""
    sources, no_sources = _sources(bundle / manifest.KERNELS)
    code, no_code = _assembly(bundle)
    stripped = "the library has no such symbol: it was stripped"
    return {
        symbol: Kernel(
            source=sources.get(symbol),
            source_missing=no_sources or "the bundle does not hold it",
            assembly=code.get(symbol),
            assembly_missing=no_code or stripped,
        )
        for symbol in dict.fromkeys(symbols)
    }


def _sources(path: Path) -> tuple[dict[str, str], str]:
    if not path.is_file():
        return {}, f"the bundle has no {path.name}: it was built by an older release"
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        return {name.removesuffix(".py"): archive.read(name).decode() for name in names}, ""


def _assembly(bundle: Path) -> tuple[dict[str, str], str]:
    """Machine code by symbol, and why there is none."""
    architecture = manifest.read(bundle).architecture
    tool, package = "objdump", "binutils"
    if architecture != host.architecture():
        tool = f"{architecture}-linux-gnu-objdump"
        package = f"binutils-{architecture.replace('_', '-')}-linux-gnu"
    if shutil.which(tool) is None:
        return {}, f"{tool} is missing; run: apt-get install {package}"
    command = [tool, "--disassemble", "--no-show-raw-insn", str(bundle / manifest.LIBRARY)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        return {}, f"{tool} failed: {' '.join(result.stderr.split())[:200]}"
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in result.stdout.splitlines():
        if heading := _HEADING.match(line):
            name = heading[1]
            lines = found.setdefault(name.removesuffix(_SUFFIX), []) if _SUFFIX in name else []
        elif line.strip():
            lines.append(_tidy(line))
    return {symbol: "\n".join(code) for symbol, code in found.items()}, ""


def _tidy(line: str) -> str:
    """Without the tab after the address and the names of other symbols' insides."""
    address, _, instruction = line.partition(":\t")
    return f"{address.strip():>8}  {instruction.expandtabs()}"

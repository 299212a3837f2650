"""The C++ runner for another kind of machine: one static program with weights and kernels in it."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tvm_mobilenet.deploy.network import Weights, plan, write_sources
from tvm_mobilenet.deploy.toolchain import Toolchain, installed
from tvm_mobilenet.parity import ParityReport
from tvm_mobilenet.runtime.manifest import file_digest

if TYPE_CHECKING:
    from tvm_mobilenet.compiler_pass.pipeline import Compiled

_HERE = Path(__file__).parent
_SOURCES = ("runner/batches.cc", "standalone/model.cc", "standalone/runtime.cc")
_SEAL = "\nTVM-MOBILENET-SHA256 {program} {samples}\n"  # standalone/model.cc reads it


@dataclass(frozen=True)
class Runner:
    """The program, and the first line that its compiler says of itself.

    library: the same network behind `tvm_mobilenet.h`, a shared library, where it was asked for.
    """

    path: Path
    toolchain: str
    library: Path | None = None


def build_runner(
    compiled: Compiled,
    objects: Path,
    toolchain: Toolchain,
    output: Path,
    *,
    threads: int | None = None,
    library: Path | None = None,
) -> Runner:
    """Compile and link `output` for the compiled model's device, and with `library` that too.

    objects: the directory with the model's object files, of which those with kernels are linked.
    Raises InputError when the compiler fails, MissingToolError when tvm_ffi has no headers.
    """
    # Android's dynamic linker takes position-independent programs only
    static = "android" not in compiled.target.mtriple
    form = ("-static", "-no-pie") if static else ("-pie",)
    headers = (_HERE / "standalone", _HERE / "runner", installed("tvm_ffi/include"))
    with tempfile.TemporaryDirectory(prefix="tvm-mobilenet-") as folder:
        place = Path(folder)
        weights = Weights()
        mains = (compiled.planned, *(entry.planned for entry in compiled.entries))
        networks = [plan(main, weights) for main in mains]
        write_sources(networks, weights, compiled, place, threads or 0)
        common = (
            *("-std=c++17", "-O1", "-pthread"),  # the kernels are compiled already
            *(f"-I{path}" for path in headers),
            *(_HERE / name for name in _SOURCES),
            *("network.cc", "weights.s"),
            *sorted(objects.glob("lib*.o")),
        )
        main = _HERE / "runner/main.cc"
        toolchain.run(*form, main, *common, "-lm", "-o", output, static=static, cwd=place)
        if library is not None:
            interface = ("-shared", "-fPIC", "-fvisibility=hidden", _HERE / "runner/c_api.cc")
            toolchain.run(*interface, *common, "-lm", "-o", library, cwd=place)
    return Runner(output, toolchain.version, library)


def seal(program: str | Path, samples: Path) -> None:
    """Append the SHA-256 of the program and of the samples to the program, which checks them."""
    digests = _SEAL.format(program=file_digest(Path(program)), samples=file_digest(samples))
    with Path(program).open("ab") as file:
        file.write(digests.encode())


_LIBRARY_README = """`lib/libtvm_mobilenet.so` is the network behind `runner/tvm_mobilenet.h`:

    g++ PROGRAM.c -Irunner lib/libtvm_mobilenet.so -o PROGRAM    (the compiler for the board)

"""


def readme(compiled: Compiled, parity: ParityReport, name: str, *, library: bool = False) -> str:
    """README.md of a bundle for another kind of machine: what to copy there, and what to run."""
    target, model = compiled.target, compiled.imported.name
    proof = (
        f"It was proven before it was written: {parity.summary()}."
        if parity.checked
        else f"**It is unproven**: {parity.summary()}. Do not use it before the first command "
        "below has passed on the board."
    )
    own = _LIBRARY_README if library else ""
    return f"""# {model} for {target.name}

{target.description}. {proof}

Copy `bin/runner` and `samples.npz` to the board; nothing else is needed there:

    ssh BOARD mkdir -p {name}/bin
    scp bin/runner BOARD:{name}/bin/ && scp samples.npz BOARD:{name}/

Run on the board, the first to prove it equal to PyTorch there, the second to time it, the third for
the best classes of an array (`--json` with each for one JSON document):

    {name}/bin/runner
    {name}/bin/runner --threads {target.cores} --bench 100
    {name}/bin/runner --input PICTURE.npy

Exit code 0: passed; 5: the outputs are wrong; 3: it cannot run there or a file is damaged, with the
reason. The program compares itself and the samples with their SHA-256 first.

{own}`model.so` is the same code for TVM's runtime (Python, RPC, or an own program, built as
`runner/` is); `manifest.json` says what every file is.
"""

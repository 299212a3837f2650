"""What this machine's own bundle executes, instruction by instruction, where `perf` counts nothing.

A child process (`python -m tvm_mobilenet.profiling.singlestep BUNDLE ENTRIES`) runs inferences on
one thread; singlestep.c steps through the last one with ptrace. QEMU and Valgrind, the usual ways
to count, know no AVX-512.
"""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tvm_mobilenet.child import die_with_parent
from tvm_mobilenet.deploy.emulate import Instructions
from tvm_mobilenet.errors import InputError, TvmMobilenetError
from tvm_mobilenet.runtime import Bundle, host, manifest

MACHINE = "single steps of ptrace"
_SOURCE = Path(__file__).with_suffix(".c")
_FORBIDDEN = 3  # singlestep.c's exit code
_WARM_UP_RUNS = 3

Progress = Callable[[int, int], None]  # operators done, operators in all


def count_instructions(
    bundle: Path,
    progress: Progress | None = None,
    on_pace: Callable[[float], None] | None = None,
) -> Instructions:
    """Count what one warm inference executes here, from the call in Python until it returns.

    `on_pace` is told the seconds that a step takes; in a virtual machine that was 34e-6.
    An operator's count, with the C library's functions that it calls, is the same in every run; a
    string instruction (`rep movsb`) counts once. Raises InputError where there is no ptrace or the
    bundle does not run, MissingToolError without a C compiler.
    """
    from tvm_mobilenet.deploy import toolchain

    check(bundle)
    operators = manifest.read(bundle).document["operators"]
    symbols = list(dict.fromkeys(str(operator["symbol"]) for operator in operators))
    with tempfile.TemporaryDirectory(prefix="tvm-mobilenet-") as folder:
        program, entries = Path(folder) / "singlestep", Path(folder) / "entries"
        toolchain.own_c().run("-O2", "-o", program, _SOURCE)
        worker = (sys.executable, "-m", "tvm_mobilenet.profiling.singlestep")
        command = [program, entries, *worker, bundle, entries]
        lines = []
        for line in _lines(command):
            if line.startswith("pace") and on_pace:
                on_pace(float(line.split()[1]))
            elif not line.startswith("pace"):
                lines.append(line)
                if progress and len(lines) <= len(operators):
                    progress(len(lines), len(operators))
    *calls, (_, total) = [line.split() for line in lines]
    ran = [symbols[int(index)] for index, _ in calls]
    if ran != [operator["symbol"] for operator in operators]:
        raise InputError(f"{bundle}: ran {len(ran)} operators, other than those it describes")
    return Instructions(int(total), tuple(int(count) for _, count in calls))


def check(bundle: Path) -> None:
    """InputError when this machine cannot step through the bundle."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        here = f"{platform.system()} on {platform.machine()}"
        raise InputError(f"--instructions steps through programs of Linux on x86-64, not of {here}")
    contents = manifest.read(bundle)
    if contents.architecture != host.architecture():
        raise InputError(f"{bundle}: is for {contents.architecture}, which does not run here")
    if (kind := contents.document["target"].get("kind", "llvm")) != "llvm":
        raise InputError(f"{bundle}: is for {kind}; instructions are counted of code for a CPU")


def _lines(command: list[object]) -> Iterator[str]:
    """What singlestep.c prints, as it does; InputError unless it came to its end."""
    paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONHASHSEED": "0"}
    line = ""
    with (
        tempfile.TemporaryFile("w+") as said,
        subprocess.Popen(
            [str(word) for word in command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        try:
            for line in process.stdout:
                yield line
        except BaseException:
            process.kill()  # the caller gave up
            raise
        process.wait()
        said.seek(0)
        reason = (said.read().strip().splitlines() or ["its process ended early"])[-1]
    if line.startswith("total"):
        return
    if process.returncode == _FORBIDDEN:
        raise InputError(f"this system does not let a program step through its own child: {reason}")
    raise InputError(f"cannot step through the bundle: {reason}")


def main(bundle: Path, entries: Path) -> None:
    """Run inferences; stop before and after the one to count."""
    from tvm_mobilenet.profiling.operators import Runner, stored_inputs

    die_with_parent()
    loaded = Bundle.load(bundle, threads=1, verify=False)
    runner = Runner(loaded, stored_inputs(loaded))
    symbols = dict.fromkeys(str(operator["symbol"]) for operator in loaded.manifest["operators"])
    library = ctypes.CDLL(str((loaded.path / manifest.LIBRARY).resolve()))  # the one loaded already
    places = (ctypes.cast(library[f"__tvm_ffi_{name}"], ctypes.c_void_p).value for name in symbols)
    entries.write_text("".join(f"{place:x}\n" for place in places))
    for _ in range(_WARM_UP_RUNS):
        runner.plain()
    gc.disable()
    this = os.getpid()
    os.kill(this, signal.SIGSTOP)
    runner.plain()
    os.kill(this, signal.SIGSTOP)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
    except TvmMobilenetError as error:
        sys.exit(str(error))

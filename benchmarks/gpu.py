"""Everything that needs a GPU, in one command, for a machine with Python, a driver and PyTorch.

    python benchmarks/gpu.py pack gpu.tar.xz --python 3.12      # with a network: what to carry
    python -m tarfile -e gpu.tar.xz && python gpu.py run -o out # on the GPU machine
    python gpu.py check                                         # what needs no GPU

`run` proves every model on the GPU at every precision, holds the CUDA graph against single
launches, times whole networks against PyTorch (eager in channels_last, the same under a CUDA graph,
torch.compile) in turns and each kernel against the GPU's limits, and searches knobs, the most
valuable first (`gpu_steps`). It writes OUT/gpu.json after each step, OUT/gpu.md, a page with
date, device and what is reached of the goals, and OUT/tuning_logs; started again, it goes on where
it stopped, so that --limit can cut it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path

from gpu_carried import ROOT, pack, use
from gpu_results import Results, in_processes, now
from gpu_steps import MODELS, precisions_of, print_error, steps

BATCHES = (1, 8, 32, 128)
PRECISIONS = ("float32", "tf32", "float16")
NEEDED = (
    *("tvm_mobilenet", "tvm", "tvm_ffi", "torch", "numpy", "onnx", "onnxscript", "onnx_ir"),
    *("cuda.bindings", "cuda.pathfinder"),
)


def run(args: argparse.Namespace) -> int:
    """All steps in order of worth, until the limit. 4: something is missing, which is named."""
    _prepare(args)
    if code := _say(_missing_packages()):
        return code
    work = partial(in_a_line, partial(_do_steps, args, now()))
    return in_processes(work, args.output, args.limit, args.step_limit)


def _do_steps(args: argparse.Namespace, since: str) -> int:
    """What a process does that may use the GPU."""
    if code := _say(missing_here(need_gpu=True)):
        return code
    from tvm_mobilenet import targets
    from tvm_mobilenet.profiling.gpu_network import device_name
    from tvm_mobilenet.runtime import cuda

    capability = cuda.compute_capability()
    target = targets.load(args.target or f"cuda-sm{capability}")
    results = Results(args.output, since)
    results.document["device"] = f"{device_name()}, sm_{capability}, {versions()}"
    for name, step in steps(args, target, args.output / "tuning_logs"):
        results.do(name, step)
    failed = [name for name, e in results.document["steps"].items() if e["state"] != "done"]
    sys.stdout.write(f"{results.path}: {len(failed)} steps failed\n")
    return 1 if failed else 0


def _say(missing: list[str]) -> int:
    """The exit code for what is missing."""
    sys.stderr.write("".join(f"missing: {each}\n" for each in missing))
    return 4 if missing else 0


def missing_here(*, need_gpu: bool) -> list[str]:
    """What `run` needs and this machine lacks, each with what to do about it."""
    if missing := _missing_packages():
        return missing
    from tvm_mobilenet.deploy import toolchain
    from tvm_mobilenet.errors import MissingToolError

    if need_gpu:
        missing += _missing_for_gpu()
    try:
        toolchain.own()
    except MissingToolError as error:
        missing.append(str(error))
    return missing


def _missing_packages() -> list[str]:
    return [
        f"the Python package {name}; pip install it, or pack it with --extra"
        for name in NEEDED
        if not _is_there(name)
    ]


def _missing_for_gpu() -> list[str]:
    """Before the compiler is imported: CUDA's libraries are to be in the process first."""
    import torch

    from tvm_mobilenet.errors import MissingToolError
    from tvm_mobilenet.runtime import cuda, nvrtc

    missing = []
    if why := cuda.why_not_here():
        missing.append(f"a GPU that TVM can use: {why}")
    if not torch.cuda.is_available():
        missing.append(f"a PyTorch that sees the GPU: {torch.__version__} does not")
    try:
        nvrtc.include_directories()  # of float16 and tensor cores
    except MissingToolError as error:
        missing.append(f"NVRTC: {error}")
    return missing


def _is_there(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # of what it is a part of
        return False


def _prepare(args: argparse.Namespace) -> None:
    """Make the packages importable: what was carried, else the repository."""
    if not use(args.carried):
        sys.path.insert(0, str(ROOT))


def versions() -> str:
    """What it ran on, in one line."""
    import torch
    import tvm

    return f"PyTorch {torch.__version__}, TVM {tvm.__version__}, Python {sys.version.split()[0]}"


def check(args: argparse.Namespace) -> int:
    """What is missing here, and a network through all that needs no GPU, at every precision."""
    _prepare(args)
    if code := _say(missing_here(need_gpu=False)):
        return code
    from tvm_mobilenet import frontend, targets
    from tvm_mobilenet.compiler_pass.pipeline import compile_model
    from tvm_mobilenet.deploy import cuda
    from tvm_mobilenet.deploy.library import export_library
    from tvm_mobilenet.runtime import cuda as runtime_cuda

    target = targets.load(args.target or "cuda-sm90")
    name, options = MODELS["V1 0.25/128"]
    imported = frontend.load_model(name, **options)
    launches = {}
    for precision in precisions_of(args, target):
        at = targets.at_precision(target, precision)
        with cuda.source_only(at), tempfile.TemporaryDirectory() as folder:
            compiled = compile_model(imported, at)
            export_library(compiled, Path(folder) / "model.so")
        code = cuda.assemble(compiled, (target.gpu.arch,), progress=print_error)
        launches[precision] = len(code.launches)
    document = {
        "schema_version": 1,
        "kind": "gpu-check",
        "missing": [],
        "why_no_gpu": runtime_cuda.why_not_here(),
        "launches": launches,
        "steps": [name for name, _ in steps(args, target, args.output)],
    }
    json.dump(document, sys.stdout, indent=1)
    sys.stdout.write("\n")
    return 0


def names_of(known: Collection[str]) -> Callable[[str], list[str]]:
    """argparse type: some of these names, with commas between them."""

    def parse(text: str) -> list[str]:
        asked = [part.strip() for part in text.split(",")]
        for name in asked:
            if name not in known:
                raise argparse.ArgumentTypeError(f"no '{name}'; there are {', '.join(known)}")
        return asked

    return parse


def main(argv: list[str] | None = None) -> int:
    """Parse and run one of the three commands."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    packer = commands.add_parser("pack", help="put what a GPU machine lacks into one file")
    packer.add_argument("file", type=Path, metavar="FILE")
    packer.add_argument("--python", default="3.12", metavar="X.Y", help="of the GPU machine")
    packer.add_argument(
        "--extra", action="append", default=[], metavar="NAME==VERSION", help="one more package"
    )
    for name, text in (("run", "prove, time and tune"), ("check", "all but what needs a GPU")):
        command = commands.add_parser(name, help=text)
        command.add_argument("-o", "--output", type=Path, default=Path("gpu-results"))
        command.add_argument("--carried", type=Path, metavar="FILE", help="what `pack` wrote")
        command.add_argument("--target", help="default: cuda-sm of the GPU that is here")
        command.add_argument("--models", type=names_of(MODELS), default=list(MODELS))
        command.add_argument(
            "--batches", type=lambda t: [int(n) for n in t.split(",")], default=BATCHES
        )
        command.add_argument("--precisions", type=names_of(PRECISIONS), default=list(PRECISIONS))
        command.add_argument("--trials", type=int, default=24, help="knobs an operator")
        command.add_argument(
            "--tune-seconds", type=float, default=240, metavar="SECONDS", help="of one network"
        )
        command.add_argument(
            "--step-limit", type=float, default=1200, metavar="SECONDS", help="end a step after it"
        )
        command.add_argument(
            "--limit", type=float, metavar="SECONDS", help="end all after it; go on another time"
        )
    args = parser.parse_args(argv)
    if args.command == "pack":
        return in_a_line(partial(pack, args.file, args.python, args.extra))
    return in_a_line(partial({"run": run, "check": check}[args.command], args))


def in_a_line(work: Callable[[], int]) -> int:
    """Do it; an error that a user can act on is told in a line, and gives its exit code."""
    try:
        return work()
    except Exception as error:
        code = getattr(error, "exit_code", None)  # of tvm_mobilenet.errors
        if code is None:
            raise
        sys.stderr.write(f"{error}\n")
        return int(code)


if __name__ == "__main__":
    sys.exit(main())

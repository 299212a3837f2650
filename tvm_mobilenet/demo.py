"""The main job from start to end, as ``make demo`` runs it: each step is a command to copy.

PyTorch -> ONNX -> build for this machine -> parity gate -> bundle -> two photographs -> latency
against ONNX Runtime. Everything is written below ``./demo``.
"""

from __future__ import annotations

import importlib.util
import shlex
import shutil
import sys
from pathlib import Path

from tvm_mobilenet.cli import main
from tvm_mobilenet.errors import MissingToolError, TvmMobilenetError

FOLDER = Path("demo")


def photographs() -> list[Path]:
    """The two real photographs that scikit-learn ships.

    Raises MissingToolError without scikit-learn.
    """
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        raise MissingToolError(
            "the demo's photographs come with scikit-learn: pip install '.[test]'"
        )
    images = Path(package.origin).parent / "datasets" / "images"
    return [images / "china.jpg", images / "flower.jpg"]


def steps() -> list[tuple[str, list[str]]]:
    """What each step is for, and its command."""
    onnx, bundle = str(FOLDER / "mobilenet_v1.onnx"), str(FOLDER / "mobilenet_v1.bundle")
    return [
        ("Export MobileNetV1 1.0/224 from PyTorch", ["export", "mobilenet_v1", "-o", onnx]),
        (
            "Compile it for this machine; a bundle is written only if its numbers pass",
            ["build", onnx, "--target", "native", "--mean", "0.5", "--std", "0.5", "-o", bundle],
        ),
        (
            "Hold the bundle against the original PyTorch module on fresh samples",
            ["validate", bundle, "--model", "mobilenet_v1"],
        ),
        (
            "Classify two photographs (the weights are seeded, not trained: the class numbers "
            "show that it runs, not what is in the picture)",
            ["run", bundle, *(str(FOLDER / photo.name) for photo in photographs())],
        ),
        (
            "Compare its latency with ONNX Runtime, interleaved in one run, one thread",
            ["bench", onnx, "--bundle", bundle, "--against", "onnxruntime"],
        ),
    ]


def run() -> int:
    """Run all steps; returns the first exit code that is not 0."""
    FOLDER.mkdir(exist_ok=True)
    for photo in photographs():
        shutil.copy(photo, FOLDER)
    todo = steps()
    for number, (title, command) in enumerate(todo, 1):
        print(f"\n== {number}/{len(todo)} {title}", flush=True)
        print(f"$ tvm-mobilenet {shlex.join(command)}\n", flush=True)
        code = main(command)
        if code:
            print(f"\n== this step ended with exit code {code}; the demo stops here")
            return code
    print(
        f"""
== Done. Everything is in {FOLDER.resolve()}
   mobilenet_v1.onnx      the exported model
   mobilenet_v1.bundle/   model.so, manifest.json, samples.npz and a C++ runner's source

What to type next (the commands live in .venv/bin; 'tvm-mobilenet --help' lists all):
   tvm-mobilenet build mobilenet_v2 --weights FILE.pth -o v2.bundle    your own trained weights
   tvm-mobilenet build your_model.onnx --target x86-64-v3 -o out       another x86 target
   tvm-mobilenet bench mobilenet_v1 --grid --against onnxruntime       the paper's 16 sizes
   cmake -S {FOLDER}/mobilenet_v1.bundle/runner -B runner              the C++ runner"""
    )
    return 0


if __name__ == "__main__":
    try:
        sys.exit(run())
    except TvmMobilenetError as error:
        print(f"demo: error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)

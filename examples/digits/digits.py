"""Train MobileNetV1 0.25 on handwritten digits, compile it, and see whether it still reads them.

`python examples/digits/digits.py` trains on scikit-learn's 1797 digits, held-out ones aside, saves
the weights, builds a bundle for each target, and prints top-1 accuracy on the held-out digits in
PyTorch and in the compiled code: on this machine, under QEMU where the target is another, and for a
GPU, where there is none, with its kernels emulated on the CPU, on the first of the held-out digits.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn import functional

import tvm_mobilenet as tm
from tvm_mobilenet import frontend, models, targets
from tvm_mobilenet.deploy import build, emulate
from tvm_mobilenet.errors import ParityError, TvmMobilenetError
from tvm_mobilenet.parity import Sample, judge
from tvm_mobilenet.parity.cuda_bundle import run_bundle
from tvm_mobilenet.parity.reference import evaluate
from tvm_mobilenet.parity.samples import save_samples
from tvm_mobilenet.runtime import cuda

NETWORK = {"alpha": 0.25, "resolution": 32, "classes": 10}
TARGETS = ("x86-64-v4", "x86-64-v3", "rpi4", "rpi2", "cuda-sm90")
HELD_OUT = 360
EMULATED = 60  # of them; a GPU's kernels take some 0.2 s a digit on a CPU
BATCH = 64


@dataclass(frozen=True)
class Digits:
    """Pictures [N, 3, 32, 32] in [-1, 1] and their classes [N]."""

    pictures: torch.Tensor
    classes: torch.Tensor


@dataclass(frozen=True)
class Row:
    """What a target's compiled code did on held-out digits, beside PyTorch on the same ones."""

    target: str
    where: str
    digits: int
    before: float
    after: float
    agree: int
    ratio: float


def data() -> tuple[Digits, Digits]:
    """Training digits and held-out ones, the same split every time."""
    digits = load_digits()
    small = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1  # 0..16 to [-1, 1]
    size = NETWORK["resolution"]
    large = functional.interpolate(small, (size, size), mode="bilinear").expand(-1, 3, -1, -1)
    classes = torch.tensor(digits.target)
    train, test = train_test_split(
        np.arange(len(classes)), test_size=HELD_OUT, stratify=digits.target, random_state=0
    )
    return Digits(large[train], classes[train]), Digits(large[test], classes[test])


def train(digits: Digits, epochs: int) -> nn.Module:
    """MobileNetV1 0.25, trained by Adam with one cycle of learning rates, on shifted pictures."""
    torch.manual_seed(0)
    module = models.create("mobilenet_v1", **NETWORK).train()
    steps = epochs * (len(digits.classes) // BATCH)
    optimiser = torch.optim.Adam(module.parameters(), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=1e-2, total_steps=steps)
    for epoch in range(epochs):
        order = torch.randperm(len(digits.classes))[: steps // epochs * BATCH]
        for batch in order.split(BATCH):
            down, right = (int(n) for n in torch.randint(-3, 4, (2,)))
            pictures = digits.pictures[batch].roll((down, right), (2, 3))
            loss = functional.cross_entropy(module(pictures), digits.classes[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        print(f"epoch {epoch + 1}/{epochs}: loss {loss.item():.3f}", file=sys.stderr)
    return module.eval()


def compiled_scores(
    bundle: Path, target: targets.TargetSpec, references: list[Sample]
) -> tuple[list[dict[str, np.ndarray]], str]:
    """What the bundle computes for the samples, by output, and where it ran."""
    if (bundle / emulate.RUNNER).is_file():  # another kind of machine
        command = emulate.emulator(target.mtriple, target.qemu_cpu)
        with tempfile.TemporaryDirectory() as folder:
            samples, outputs = Path(folder) / "samples.npz", Path(folder) / "outputs"
            save_samples(samples, references)
            runner = [*command, bundle / emulate.RUNNER, "--samples", samples, "--outputs", outputs]
            subprocess.run(runner, check=True, stdout=subprocess.DEVNULL)
            scores = np.fromfile(outputs, np.float32).reshape(len(references), 1, -1)
        return [{"logits": row} for row in scores], " ".join(command)
    if target.gpu is not None and cuda.why_not_here():
        inputs = [sample.inputs for sample in references]
        return run_bundle(bundle, inputs, lambda text: None), "its kernels on this CPU"
    with tm.load(bundle) as loaded:
        return [loaded.program.run(sample.inputs) for sample in references], "this machine"


def measure(
    onnx: Path, name: str, bundle: Path, references: list[Sample], truth: np.ndarray
) -> Row:
    """Build for one target and classify the held-out digits with the bundle."""
    build(onnx, target=name, output=bundle, mean=[0.5], std=[0.5])
    target = targets.load(name)
    if target.gpu is not None and cuda.why_not_here():
        references, truth = references[:EMULATED], truth[:EMULATED]
    outputs, where = compiled_scores(bundle, target, references)
    report = judge(outputs, references)
    if not report.passed:
        raise ParityError(f"{name}: {report.summary()}")
    before = np.array([sample.float32["logits"].argmax() for sample in references])
    after = np.array([scores["logits"].argmax() for scores in outputs])
    return Row(
        name,
        where,
        len(references),
        float((before == truth).mean()),
        float((after == truth).mean()),
        int((before == after).sum()),
        max(verdict.ratio for verdict in report.outputs),
    )


def main() -> int:
    """Train or load, build, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("digits"))
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--targets", nargs="+", default=TARGETS, metavar="T")
    parser.add_argument("--weights", type=Path, help="use these instead of training")
    args = parser.parse_args()
    training, test = data()
    args.output.mkdir(parents=True, exist_ok=True)
    weights = args.weights or args.output / "digits.safetensors"
    if args.weights is None:
        save_file(train(training, args.epochs).state_dict(), weights)
    onnx = args.output / "digits.onnx"
    tm.export("mobilenet_v1", onnx, weights=weights, exporter="torchscript", **NETWORK)
    module = models.create("mobilenet_v1", weights=weights, **NETWORK)
    imported = frontend.import_onnx(onnx, module=module)
    pictures = test.pictures.numpy()
    references = evaluate(imported, [{"input": picture[None]} for picture in pictures])
    print(f"{'TARGET':<12}{'RAN ON':<28}{'PYTORCH':>8}{'COMPILED':>10}{'AGREE':>10}{'RATIO':>8}")
    for name in args.targets:
        row = measure(onnx, name, args.output / name, references, test.classes.numpy())
        agree = f"{row.agree}/{row.digits}"
        print(
            f"{row.target:<12}{row.where:<28}{row.before:>8.2%}{row.after:>10.2%}"
            f"{agree:>10}{row.ratio:>8.2f}"
        )
    print(f"weights: {weights}; a bundle for each target: {args.output}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except TvmMobilenetError as error:
        print(f"digits: error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)

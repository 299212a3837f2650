"""A directory that shows one operator's failure with the installed package alone."""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.errors import InputError
from tvm_mobilenet.parity.judge import ParityReport
from tvm_mobilenet.parity.samples import load_samples

if TYPE_CHECKING:
    from tvm_mobilenet.deploy.cuda import GpuCode
    from tvm_mobilenet.parity.bisect import Finding
    from tvm_mobilenet.parity.cut import BuiltCut, Change
    from tvm_mobilenet.profiling.remote import Device
    from tvm_mobilenet.schedules.base import Records
    from tvm_mobilenet.targets import TargetSpec

_SCRIPT = '''"""Shows the failure that README.md tells of.

python repro.py            runs bundle/, the operator as it was compiled when the failure was seen
python repro.py --rebuild  compiles model.onnx again with the installed package
python repro.py --help     has more
Exit code 5: it fails; 0: it passes.
"""

import sys
from pathlib import Path

from tvm_mobilenet.errors import TvmMobilenetError
from tvm_mobilenet.parity.repro import replay_asked

try:
    report = replay_asked(Path(__file__).parent)
except TvmMobilenetError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
print(report.summary())
sys.exit(0 if report.passed else 5)
'''
_README = """# {operator} in {model}

{summary}. Run `python repro.py` (exit code 5: it fails), or `python repro.py --rebuild`.

{needs}

`model.onnx`: the operator alone. `inputs.npz`, `expected.npz`: the tensors that the reference feeds
it, and what it must give at float64, `<sample>.<name>`. `bundle/`: the operator as it was compiled,
with the same samples. `finding.json`: what was tried.
"""
_FINDING, _BUNDLE = "finding.json", "bundle"


def check_directory(path: Path) -> None:
    """InputError unless a repro can be written there: nothing is overwritten."""
    from tvm_mobilenet.deploy.bundle import check_output

    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"{path}: exists and is not an empty directory; choose another")
    check_output(path / _BUNDLE)


def write_repro(
    finding: Finding,
    target: TargetSpec,
    path: Path,
    *,
    model: str,
    records: Records | None = None,
    change: Change | None = None,
    device: Device | None = None,
) -> Path:
    """Write the directory and return its path. `model`: what the operator was cut out of.

    records, change, device: as given to `bisect`. Raises InputError for a directory that is not
    empty, and as `build_cut` does.
    """
    import numpy as np
    import onnx

    from tvm_mobilenet.deploy.bundle import write_bundle
    from tvm_mobilenet.parity.cut import build_cut

    check_directory(path)
    path.mkdir(parents=True, exist_ok=True)
    cut = finding.cut
    onnx.save(cut.model, path / "model.onnx")
    for name, kinds in (
        ("inputs.npz", [sample.inputs for sample in cut.samples]),
        ("expected.npz", [sample.float64 for sample in cut.samples]),
    ):
        arrays = {
            f"{i}.{key}": value for i, each in enumerate(kinds) for key, value in each.items()
        }
        np.savez(path / name, **arrays)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory(prefix="tvm-mobilenet-") as folder:
        built = build_cut(cut, target, Path(folder), records=records, change=change, device=device)
        write_bundle(
            built.compiled,
            built.report,
            cut.samples,
            path / _BUNDLE,
            library=built.library,
            runner=built.runner,
            gpu=_gpu_code(built),
        )
    document = {
        "target": target.name,
        "machine": built.report.machine,
        "device": device and dataclasses.asdict(device),
        **finding.to_json(),
    }
    (path / _FINDING).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    words = {"summary": finding.summary(), "operator": finding.operator.label, "model": model}
    (path / "repro.py").write_text(_SCRIPT, encoding="utf-8")
    readme = _README.format(**words, needs=_needs(built, device))
    (path / "README.md").write_text(readme, encoding="utf-8")
    return path


def _gpu_code(built: BuiltCut) -> GpuCode | None:
    """A GPU's machine code; None for a CPU."""
    from tvm_mobilenet.deploy import cuda

    target = built.compiled.target
    if target.gpu is None:
        return None
    architectures = cuda.check_options(target, None, target.precision)
    return cuda.assemble(built.compiled, architectures, progress=lambda message: None)


def _needs(built: BuiltCut, device: Device | None) -> str:
    """What the script needs beside the package, in a line."""
    from tvm_mobilenet.deploy.toolchain import is_cross

    target = built.compiled.target
    if device is not None:
        where = device.rpc or f"{device.key} of the tracker {device.tracker}"
        return (
            f"It needs the device that it was seen on ({where}); `--rpc HOST:PORT`, or "
            "`--rpc-tracker HOST:PORT --rpc-key KEY`, names another, `--here` leaves it out."
        )
    if target.gpu is None:
        return (
            f"It needs `{built.report.machine}`." if built.report.machine else "It needs no more."
        )
    if is_cross(target):
        return (
            f"bundle/ needs the machine itself ({target.name}, {target.mtriple}); `--rebuild` "
            "emulates the CUDA kernels on any CPU, with g++."
        )
    return (
        "It needs no GPU: without one, and with `--rebuild`, the CUDA kernels are emulated on the "
        "CPU, which needs g++."
    )


def replay_asked(directory: Path, arguments: Sequence[str] | None = None) -> ParityReport:
    """`replay` as a command line asks for; what a repro directory's script calls.

    arguments: None takes the process's. Raises as `replay` does, UsageError for others.
    """
    from tvm_mobilenet.profiling.remote import Device
    from tvm_mobilenet.remote.trace import chosen_device

    parser = argparse.ArgumentParser(
        description="README.md says what fails. Exit code 5: it fails; 0: it passes; 3: it cannot "
        "be run here; 4: a tool is missing; 6: the device failed."
    )
    parser.add_argument(
        "--rebuild",
        action="store_true",
        help="compile model.onnx again with the installed package, instead of running bundle/",
    )
    parser.add_argument(
        "--here",
        action="store_true",
        help="run here, or under QEMU, what was seen on a device over RPC",
    )
    parser.add_argument("--rpc", metavar="HOST:PORT", help="a server of the device to run on")
    parser.add_argument("--rpc-tracker", metavar="HOST:PORT", help="the tracker that knows it")
    parser.add_argument("--rpc-key", metavar="KEY", help="which kind of device")
    args = parser.parse_args(arguments)
    device = chosen_device(args.rpc, args.rpc_tracker, args.rpc_key)
    seen_on = _document(directory).get("device")
    if device is None and seen_on and not args.here:
        device = Device(**seen_on)
    return replay(directory, rebuild=args.rebuild, device=device)


def replay(directory: Path, *, rebuild: bool = False, device: Device | None = None) -> ParityReport:
    """Judge the operator of a repro directory: as it was compiled, or compiled again.

    device: where to run over RPC, if not here. **Runs the code in the directory.** Raises
    InputError when `write_repro` did not make it or it cannot run here, NothingMeasuredError when
    the device fails.
    """
    from tvm_mobilenet import frontend
    from tvm_mobilenet.deploy.validate import validate_bundle
    from tvm_mobilenet.parity.cut import Cut, build_cut, target_of
    from tvm_mobilenet.runtime import manifest
    from tvm_mobilenet.tuning.records import applicable

    if not rebuild:
        return validate_bundle(directory / _BUNDLE, device=device)
    contents = manifest.read(directory / _BUNDLE)
    samples = load_samples(
        directory / _BUNDLE / manifest.SAMPLES,
        [tensor.name for tensor in contents.inputs],
        [tensor.name for tensor in contents.outputs],
    )
    target = target_of(contents.document["target"])
    model = frontend.import_onnx(directory / "model.onnx").onnx
    with tempfile.TemporaryDirectory(prefix="tvm-mobilenet-") as folder:
        cut = Cut(model, tuple(samples))
        records = applicable(target, target.cores)
        return build_cut(cut, target, Path(folder), records=records, device=device).report


def _document(directory: Path) -> dict[str, Any]:
    """finding.json; InputError when there is none."""
    path = directory / _FINDING
    try:
        document: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{directory}: no repro directory ({path} cannot be read)") from error
    return document

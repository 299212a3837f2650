"""A directory that shows one operator's failure with the installed package alone."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tvm_mobilenet.errors import InputError
from tvm_mobilenet.parity.judge import ParityReport
from tvm_mobilenet.parity.samples import load_samples

if TYPE_CHECKING:
    from tvm_mobilenet.parity.bisect import Change, Finding
    from tvm_mobilenet.schedules.base import Records
    from tvm_mobilenet.targets import TargetSpec

_SCRIPT = '''"""{summary}.

python repro.py            runs bundle/, the operator as it was compiled when the failure was seen
python repro.py --rebuild  compiles model.onnx again with the installed package
Exit code 5: it fails; 0: it passes.
"""

import sys
from pathlib import Path

from tvm_mobilenet.parity.repro import replay

report = replay(Path(__file__).parent, rebuild="--rebuild" in sys.argv[1:])
print(report.summary())
sys.exit(0 if report.passed else 5)
'''
_README = """# {operator} in {model}

{summary}. Run `python repro.py` (exit code 5: it fails), or `python repro.py --rebuild`.

`model.onnx`: the operator alone. `inputs.npz`, `expected.npz`: the tensors that the reference feeds
it, and what it must give at float64, `<sample>.<name>`. `bundle/`: the operator as it was compiled,
with the same samples. `finding.json`: what was tried.
"""


def check_directory(path: Path) -> None:
    """InputError unless a repro can be written there: nothing is overwritten."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"{path}: exists and is not an empty directory; choose another")


def write_repro(
    finding: Finding,
    target: TargetSpec,
    path: Path,
    *,
    model: str,
    records: Records | None = None,
    change: Change | None = None,
) -> Path:
    """Write the directory and return its path. `model`: what the operator was cut out of.

    records, change: as given to `bisect`. Raises InputError for a directory that is not empty.
    """
    import numpy as np
    import onnx

    from tvm_mobilenet.deploy.bundle import write_bundle
    from tvm_mobilenet.parity.bisect import build_cut

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
        built = build_cut(cut, target, Path(folder), records=records, change=change)
        write_bundle(
            built.compiled,
            built.report,
            cut.samples,
            path / "bundle",
            library=built.library,
            runner=built.runner,
        )
    document = {"target": target.name, **finding.to_json()}
    (path / "finding.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    words = {"summary": finding.summary(), "operator": finding.operator.label, "model": model}
    (path / "repro.py").write_text(_SCRIPT.format(**words), encoding="utf-8")
    (path / "README.md").write_text(_README.format(**words), encoding="utf-8")
    return path


def replay(directory: Path, *, rebuild: bool = False) -> ParityReport:
    """Judge the operator of a repro directory: as it was compiled, or compiled again.

    **Runs the code in the directory.** Raises InputError when `write_repro` did not make it.
    """
    from tvm_mobilenet import frontend, targets
    from tvm_mobilenet.deploy.validate import validate_bundle
    from tvm_mobilenet.parity.bisect import Cut, build_cut
    from tvm_mobilenet.runtime import manifest
    from tvm_mobilenet.tuning.records import applicable

    if not rebuild:
        return validate_bundle(directory / "bundle")
    contents = manifest.read(directory / "bundle")
    samples = load_samples(
        directory / "bundle" / manifest.SAMPLES,
        [tensor.name for tensor in contents.inputs],
        [tensor.name for tensor in contents.outputs],
    )
    target = targets.load(str(contents.document["target"]["name"]))
    model = frontend.import_onnx(directory / "model.onnx").onnx
    with tempfile.TemporaryDirectory(prefix="tvm-mobilenet-") as folder:
        cut = Cut(model, tuple(samples))
        records = applicable(target, target.cores)
        return build_cut(cut, target, Path(folder), records=records).report

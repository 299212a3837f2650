"""Bundles for several targets: complete bundles side by side, of which the loader picks one."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from tvm_mobilenet.deploy.bundle import check_output, list_files, put_in_place
from tvm_mobilenet.errors import InputError
from tvm_mobilenet.runtime import manifest


def merge(bundles: Sequence[str | Path], output: str | Path) -> Path:
    """Write the bundle `output` for the targets of all `bundles`, and return its path.

    Each lies in a directory named after its target. Of those that run on a machine the loader takes
    the one that needs the most CPU features, among equals the first given. Raises InputError: no
    bundle, a changed file, two of one target, different models, an output that cannot be written.
    """
    read = [(Path(path), manifest.read(Path(path))) for path in bundles]
    if len(read) < 2:
        raise InputError("two bundles or more are needed to merge")
    first = read[0][1]
    names: set[str] = set()
    for path, contents in read:
        manifest.check_files(path, contents)
        name = _directory_name(contents.document["target"]["name"])
        if name in names:
            raise InputError(f"{path}: there is another bundle for {name}; give each target once")
        names.add(name)
        for what in ("inputs", "outputs", "batches"):
            if getattr(contents, what) != getattr(first, what):
                raise InputError(
                    f"{path}: its {what} are not those of {read[0][0]}: another model?"
                )
    read.sort(key=lambda each: -len(each[1].cpu_features))  # stable: equals stay as given
    with put_in_place(check_output(output), output) as staging:
        variants = []
        for path, contents in read:
            name = _directory_name(contents.document["target"]["name"])
            for file in (*contents.files, manifest.NAME):
                (staging / name / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path / file, staging / name / file)
            variants.append(
                {
                    "path": name,
                    "target": contents.document["target"]["name"],
                    "architecture": contents.architecture,
                    "cpu_features": list(contents.cpu_features),
                }
            )
        document = {
            "format": manifest.FORMAT,
            "schema_version": manifest.SCHEMA_VERSION,
            "model": first.document["model"],
            "variants": variants,
            "files": list_files(staging),
        }
        (staging / manifest.NAME).write_text(manifest.seal(document), encoding="utf-8")
    return Path(output).resolve()


def _directory_name(target: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "_", target).lstrip(".") or "target"

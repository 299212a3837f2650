"""Writes bundles: all of it or nothing, and never over something that is no bundle."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import os
import secrets
import shutil
import sys
import zipfile
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.deploy.device import Runner, readme, seal
from tvm_mobilenet.deploy.library import cpu_features, export_library, output_values
from tvm_mobilenet.errors import InputError
from tvm_mobilenet.parity.samples import Sample, save_samples
from tvm_mobilenet.runtime import cuda, host, manifest

if TYPE_CHECKING:
    from tvm_mobilenet.compiler_pass.pipeline import Compiled
    from tvm_mobilenet.deploy.cuda import GpuCode
    from tvm_mobilenet.imaging import Preprocessing
    from tvm_mobilenet.parity import ParityReport

_RUNNER = Path(__file__).parent / "runner"
_TOOLS = ("tvm-mobilenet", "apache-tvm", "apache-tvm-ffi", "torch", "onnx", "numpy")
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # renameat2(2)


def check_output(output: str | Path) -> Path:
    """Where a bundle for `output` would be written (links followed), if it may be.

    Free paths, empty directories and bundles may; InputError for anything else, for a bundle that
    holds files which are not its own, and for a place that cannot be written.
    """
    path = Path(output).resolve()
    if path.exists() and not path.is_dir():
        raise InputError(f"{output}: exists and is not a bundle; choose another output")
    if path.is_dir() and any(path.iterdir()):
        if not manifest.is_bundle(path):
            raise InputError(f"{output}: exists and is not a bundle; choose another output")
        _refuse_foreign_files(path, output)
    above = next(parent for parent in path.parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise InputError(f"{output}: nothing can be written in {above}; choose another output")
    return path


def write_bundle(
    compiled: Compiled,
    parity: ParityReport,
    samples: Sequence[Sample],
    output: str | Path,
    *,
    library: Path | None = None,
    preprocessing: Preprocessing | None = None,
    threads: int | None = None,
    batches: Sequence[int] = (),
    runner: Runner | None = None,
    gpu: GpuCode | None = None,
) -> Path:
    """Write a bundle and return its path; an older bundle in that place is replaced at once.

    library: what `export_library` made of `compiled`, made here when not given.
    threads: how many the bundle runs on unless told otherwise (None: the physical cores).
    batches: other sizes of the first axis than the compiled one that are proven.
    gpu: the GPU's part; there is no C++ runner for it.
    runner: for another kind of machine, the C++ runner built for it; a README.md goes with it.

    Raises InputError for an output that `check_output` refuses or a full disk, with nothing left
    behind and an older bundle as it was.
    """
    path = check_output(output)
    with put_in_place(path, output) as staging:
        if library is None:
            export_library(compiled, staging / manifest.LIBRARY)
        else:
            shutil.copyfile(library, staging / manifest.LIBRARY)
        save_samples(staging / manifest.SAMPLES, samples)
        _save_kernels(staging / manifest.KERNELS, compiled)
        if gpu is not None:
            gpu.write(staging / cuda.DIRECTORY)
        else:
            (staging / "runner").mkdir()
            for source in sorted(_RUNNER.iterdir()):
                if source.is_file():
                    shutil.copyfile(source, staging / "runner" / source.name)
        document = _document(compiled, parity, preprocessing, threads, batches)
        if runner is not None:
            (staging / "bin").mkdir()
            seal(shutil.copy(runner.path, staging / "bin" / "runner"), staging / manifest.SAMPLES)
            if runner.library is not None:
                (staging / "lib").mkdir()
                copy = shutil.copy(runner.library, staging / "lib")
                seal(copy, staging / manifest.SAMPLES)
            text = readme(compiled, parity, path.name, library=runner.library is not None)
            (staging / "README.md").write_text(text, "utf-8")
            document["tools"]["cross-compiler"] = runner.toolchain
        document["files"] = list_files(staging)
        (staging / manifest.NAME).write_text(manifest.seal(document), encoding="utf-8")
    return path


@contextlib.contextmanager
def put_in_place(path: Path, output: str | Path) -> Iterator[Path]:
    """A directory to fill that becomes the bundle at `path`, what `check_output(output)` gave.

    All or nothing: see `write_bundle`, which raises the same.
    """
    with _os_errors_named(output), _staging(path) as staging:
        yield staging
        _flush(staging)
        check_output(output)
        _move(staging, path)


def list_files(directory: Path) -> dict[str, dict[str, Any]]:
    """The manifest's `files` of a directory: SHA-256 and size in bytes by name."""
    return {
        file.relative_to(directory).as_posix(): {
            "sha256": manifest.file_digest(file),
            "size": file.stat().st_size,
        }
        for file in sorted(directory.rglob("*"))
        if file.is_file()
    }


def _save_kernels(path: Path, compiled: Compiled) -> None:
    """TVMScript of every kernel as it was compiled, `<symbol>.py`: what `profile` shows."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for symbol, function in compiled.kernels.items():
            # ZipInfo's fixed date: the same build gives the same file
            entry = zipfile.ZipInfo(f"{symbol}.py")
            archive.writestr(entry, function.script(show_meta=False), zipfile.ZIP_DEFLATED)


def _document(
    compiled: Compiled,
    parity: ParityReport,
    preprocessing: Preprocessing | None,
    threads: int | None,
    batches: Sequence[int],
) -> dict[str, Any]:
    imported, target = compiled.imported, compiled.target
    described = dataclasses.asdict(target)
    del described["source"]  # a path of the machine that built it
    return {
        "format": manifest.FORMAT,
        "schema_version": manifest.SCHEMA_VERSION,
        "model": {"name": imported.name, "source": imported.source},
        "inputs": [dataclasses.asdict(info) for info in imported.inputs],
        "outputs": [
            {**dataclasses.asdict(info), "values": output_values(imported.onnx, info.name)}
            for info in imported.outputs
        ],
        "batches": list(batches),
        "entries": [
            {
                "name": entry.name,
                "batch": entry.batch,
                "operators": [dataclasses.asdict(operator) for operator in entry.operators],
            }
            for entry in compiled.entries
        ],
        "preprocessing": None if preprocessing is None else preprocessing.to_json(),
        "threads": threads,
        "target": {
            **described,
            "architecture": host.architecture(target.mtriple),
            "cpu_features": list(cpu_features(target)),
        },
        "tools": {"python": sys.version.split()[0]} | {name: version(name) for name in _TOOLS},
        "operators": [dataclasses.asdict(operator) for operator in compiled.operators],
        "parity": parity.to_json(),
    }


def _refuse_foreign_files(bundle: Path, output: str | Path) -> None:
    """InputError when replacing the bundle would lose files that no build made."""
    own = set(manifest.listed_files(bundle)) | {manifest.NAME}
    for file in sorted(bundle.rglob("*")):
        name = file.relative_to(bundle).as_posix()
        if name not in own and (file.is_symlink() or not file.is_dir()):
            raise InputError(
                f"{output}: holds {name}, which is not the bundle's; move it or choose another "
                "output"
            )


@contextlib.contextmanager
def _staging(path: Path) -> Iterator[Path]:
    """A new directory beside `path`, gone at the end; so are parents made for nothing."""
    missing = [parent for parent in path.parents if not parent.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        staging.mkdir()
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        for parent in missing:
            with contextlib.suppress(OSError):  # not empty: the bundle is in it
                parent.rmdir()


@contextlib.contextmanager
def _os_errors_named(output: str | Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(
                f"{output}: no space left on the device; free some or choose another output"
            ) from error
        raise InputError(f"{output}: cannot be written ({error.strerror or error})") from error


def _flush(directory: Path) -> None:
    """Have everything on the disk before the rename, so that a crash cannot leave half of it."""
    for entry in [*directory.rglob("*"), directory]:
        descriptor = os.open(entry, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _move(staging: Path, path: Path) -> None:
    """Put the staged bundle in its place; what was there goes where it was staged."""
    if not path.exists() or not any(path.iterdir()):
        staging.rename(path)
    elif not _exchange(staging, path):
        aside = staging.with_name(f"{staging.name}.old")
        path.rename(aside)
        try:
            staging.rename(path)
        except OSError:
            aside.rename(path)
            raise
        shutil.rmtree(aside, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two directories in one step; False where the system or its file system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    paths = (_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second))
    if rename(*paths, ctypes.c_uint(_RENAME_EXCHANGE)) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code))

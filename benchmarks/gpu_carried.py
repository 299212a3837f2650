"""What a GPU machine without a network lacks, in one file: see gpu.py."""

from __future__ import annotations

import importlib.metadata
import io
import lzma
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
SCRIPTS = ("gpu.py", "gpu_steps.py", "gpu_report.py", "gpu_carried.py")
LIMIT_MIB = 61  # what a file for such a machine may have
NOT_CARRIED = ("3rdparty", "__pycache__", "include", "cmake", "web", "src")
NOT_CARRIED += ("measured.jsonl",)  # what `tune` goes on from
# xz's filter for machine code saves a tenth of TVM's compiler, which is nearly all there is
FILTERS = [
    {"id": lzma.FILTER_X86},
    {"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": 192 * 2**20, "lc": 4},
]
HEADERS = "nvidia/cu13/include/cccl"  # of cuda_fp16.h, which comes with PyTorch, these do not


def pack(file: Path, python: str, extra: Sequence[str]) -> int:
    """TVM with its compiler, tvm_ffi for that Python, this package and gpu.py, in one file."""
    import tvm

    from tvm_mobilenet.runtime import nvrtc

    headers = nvrtc.include_directories()[1]
    sources = {
        "tvm": Path(tvm.__file__).parent,
        "tvm_mobilenet": ROOT / "tvm_mobilenet",
        f"{HEADERS}/nv": headers / "nv",
    }
    if file.exists():
        sys.stderr.write(f"{file}: exists; name another file\n")
        return 3
    with tempfile.TemporaryDirectory() as folder:
        release = importlib.metadata.version("apache-tvm-ffi")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", folder]
        command += ["--only-binary=:all:", "--python-version", python]
        for glibc in ("2_28", "2_27", "2_24", "2_17"):
            command += ["--platform", f"manylinux_{glibc}_x86_64"]
        subprocess.run([*command, f"apache-tvm-ffi=={release}", *extra], check=True)
        with (
            lzma.open(file, "wb", filters=FILTERS) as xz,
            tarfile.open(fileobj=xz, mode="w") as out,
        ):
            for wheel in sorted(Path(folder).glob("*.whl")):
                _add_wheel(out, wheel)
            for name, source in sources.items():
                for path in files_of(source):
                    out.add(path.resolve(), f"site/{name}/{path.relative_to(source)}")
            for name in ("apache-tvm", "tvm-mobilenet"):
                text = importlib.metadata.distribution(name).read_text("METADATA") or ""
                place = f"{name.replace('-', '_')}-{importlib.metadata.version(name)}.dist-info"
                _add(out, f"site/{place}/METADATA", text.encode())
            for name in SCRIPTS:
                out.add(HERE / name, name)
    mib = file.stat().st_size / 2**20
    sys.stdout.write(f"{file}: {mib:.1f} MiB; there: tar xf {file.name} && python gpu.py run\n")
    if mib > LIMIT_MIB:
        sys.stderr.write(f"{file}: more than {LIMIT_MIB} MiB; take an --extra away\n")
        return 3
    return 0


def files_of(source: Path) -> list[Path]:
    """The files of a package, those behind links to directories too, without what is not needed."""
    found = []
    for folder, directories, names in os.walk(source, followlinks=True):
        directories[:] = [name for name in directories if name not in NOT_CARRIED]
        found += [Path(folder) / name for name in names if name not in NOT_CARRIED]
    return sorted(found)


def _add_wheel(out: tarfile.TarFile, wheel: Path) -> None:
    """A wheel's files: in the wheel they would be compressed already, and worse."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            ours = wheel.name.startswith("apache_tvm_ffi-")  # of others everything
            if not name.endswith("/") and not (ours and {*name.split("/")} & {*NOT_CARRIED}):
                _add(out, f"site/{name}", archive.read(name))


def _add(out: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    out.addfile(entry, io.BytesIO(content))


def unpack(carried: Path) -> None:
    """Make what was packed importable; the folder beside the file is used again."""
    place = carried.with_name(f"{carried.name}.unpacked")
    if not place.is_dir():
        with tempfile.TemporaryDirectory(dir=carried.parent) as folder:
            with tarfile.open(carried) as archive:
                archive.extractall(folder, filter="data")
            Path(folder, "site").rename(place)
    sys.path.insert(0, str(place))


def unpack_beside() -> bool:
    """Make importable what lies unpacked beside this script; False where nothing does."""
    if not (HERE / "site").is_dir():
        return False
    sys.path.insert(0, str(HERE / "site"))
    return True

"""A folder with all that a board without Python needs to be a device: server, runtime, README."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

from tvm_mobilenet import targets
from tvm_mobilenet.deploy import toolchain
from tvm_mobilenet.deploy.builder import find_compiler
from tvm_mobilenet.errors import InputError, MissingToolError
from tvm_mobilenet.runtime import host

_SOURCE = Path(__file__).parent / "native_server" / "rpc_server.cc"
_PACKAGES = ("apache-tvm", "apache-tvm-ffi")
_LIBRARIES = ("tvm/lib/libtvm_runtime.so", "tvm_ffi/lib/libtvm_ffi.so")  # in their wheels
_EXTRA = "tvm/lib/libtvm_runtime_extra.so"  # fills tensors with noise over there
_WHEEL_ARCHITECTURES = ("x86_64", "aarch64")
_PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_24", "manylinux_2_17")
_README = """TVM's RPC server for {target}

Copy this folder to the device, and start on it:

    ./rpc_server --tracker TRACKER_HOST:9190 --key {target}

TVM's RPC has no authentication: the server listens on loopback alone and is reached through a
tunnel that the device opens before, to the machine where the tracker runs:

    ssh -N -L 9190:127.0.0.1:9190 -R 9090:127.0.0.1:9090 USER@TRACKER_HOST &
    ./rpc_server --tracker 127.0.0.1:9190 --key {target}
"""


def package_server(
    target: str,
    output: str | Path,
    *,
    cc: str | None = None,
    runtime: str | Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> Path:
    """Compile the server for a target and put it into the new folder `output` with TVM's runtime.

    cc: the compiler for it; None takes the first one installed, as `build` does.
    runtime: directory with libtvm_runtime.so and libtvm_ffi.so for the device, and perhaps
        libtvm_runtime_extra.so; None takes them from the installed packages, for another
        architecture from the wheels of the same versions, which pip downloads (100 MB).

    Raises InputError: an output that exists, a compiler that fails, a runtime that lacks a library.
    MissingToolError: no compiler, no wheel for this architecture, no connection to get it.
    """
    say = progress or (lambda message: None)
    spec = targets.load(target)
    architecture = host.architecture(spec.mtriple)
    place = Path(output)
    if place.exists():
        raise InputError(f"{output}: exists; choose another output")
    compiler = find_compiler(spec, cc) or toolchain.own()
    with _staging(place) as folder:
        if runtime is not None:
            say(f"copying TVM's runtime from {runtime}")
            _copy(Path(runtime), folder)
        elif architecture == host.architecture():
            say("copying TVM's runtime")
            for library in (*_LIBRARIES, _EXTRA):
                shutil.copy(toolchain.installed(library), folder)
        else:
            say(f"downloading TVM's runtime for {architecture}")
            _download(architecture, folder)
        say(f"compiling with {' '.join(compiler.command)}")
        compiler.run(
            "-std=c++17",
            "-O2",
            "-isystem",
            toolchain.installed("tvm_ffi/include"),
            _SOURCE,
            "-o",
            folder / "rpc_server",
            # nothing in the source names the runtime: it registers itself when it is loaded
            "-Wl,--no-as-needed",
            *sorted(folder.glob("libtvm_*.so")),
            "-Wl,-rpath,$ORIGIN",
        )
        (folder / "README.txt").write_text(_README.format(target=spec.name), encoding="utf-8")
        folder.rename(place)
    return place


def _copy(source: Path, folder: Path) -> None:
    for library in (*_LIBRARIES, _EXTRA):
        file = source / Path(library).name
        if file.is_file():
            shutil.copy(file, folder)
        elif library != _EXTRA:
            raise InputError(f"{source}: has no {file.name}")


def _download(architecture: str, folder: Path) -> None:
    if architecture not in _WHEEL_ARCHITECTURES:
        raise MissingToolError(
            f"TVM has no wheel for {architecture}: build its runtime (libtvm_runtime.so, "
            "libtvm_ffi.so) for it and give their directory with --runtime"
        )
    with tempfile.TemporaryDirectory(prefix="tvm-mobilenet-") as wheels:
        command = [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
            *("--no-deps", "--only-binary=:all:", "--dest", wheels),
            *(f"--platform={platform}_{architecture}" for platform in _PLATFORMS),
            *(f"{package}=={version(package)}" for package in _PACKAGES),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise MissingToolError(
                f"TVM's runtime for {architecture} was not downloaded ({said}); get the two "
                "libraries another way and give their directory with --runtime"
            )
        for wheel in Path(wheels).glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                for name in set(archive.namelist()) & {*_LIBRARIES, _EXTRA}:
                    (folder / Path(name).name).write_bytes(archive.read(name))


@contextlib.contextmanager
def _staging(place: Path) -> Iterator[Path]:
    """A new folder beside `place`, gone at the end unless it was renamed."""
    staging = place.resolve().with_name(f".{place.name}.{secrets.token_hex(4)}")
    try:
        staging.mkdir(parents=True)
        yield staging
    except OSError as error:
        raise InputError(f"{place}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)

"""Bundles for NVIDIA GPUs: TVM's CUDA runtime, and which machine code a device gets.

The CUDA module in model.so is source, because TVM writes nothing else without a GPU at hand. On
loading, TVM asks the function `tvm_callback_cuda_compile` for that source's machine code; here it
answers with a file of the bundle, so that nothing is compiled on the device: the cubin of its own
architecture, else PTX, which the driver translates. Only for an architecture older than the PTX
does NVRTC compile the source.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.errors import InputError, MissingToolError
from tvm_mobilenet.runtime import library, nvrtc, ptxas

if TYPE_CHECKING:
    import numpy as np

DIRECTORY = "cuda"  # within a bundle
SOURCE, KERNELS = "kernels.cu", "kernels.json"
_CUDA, _CPU, _FIRST, _POOLED_ALLOCATOR = 2, 1, 0, 2  # TVM's numbers
_EXISTS, _CAPABILITY = 0, 4  # of TVM's device attributes
_CALLBACK = "tvm_callback_cuda_compile"
_lock = threading.Lock()


def why_not_here() -> str | None:
    """Why no GPU can be used on this machine, in a few words; None when one can."""
    try:
        compute_capability()
    except (InputError, MissingToolError) as error:
        return str(error)
    return None


@cache
def compute_capability() -> int:
    """The first GPU's compute capability times ten: 90 for sm_90.

    Raises InputError: no driver, or no GPU that it shows to this process. MissingToolError: no
    CUDA runtime library, or none of TVM's for CUDA.
    """
    _load_runtime()
    attribute = library.tvm_ffi().get_global_func("runtime.GetDeviceAttr")
    try:
        if not attribute(_CUDA, _FIRST, _EXISTS):
            raise InputError("no NVIDIA GPU is visible here; see nvidia-smi, CUDA_VISIBLE_DEVICES")
        return int(str(attribute(_CUDA, _FIRST, _CAPABILITY)).replace(".", ""))
    except RuntimeError as error:  # of TVM: what the driver complains of
        raise InputError(f"the NVIDIA GPU cannot be used: {_first_line(error)}") from error


def machine_code(directory: Path, capability: int) -> bytes:
    """What a GPU of that compute capability runs of the bundle's `cuda/` directory.

    Raises InputError when there is nothing for it and NVRTC cannot make it either.
    """
    cubin = directory / f"sm_{capability}.cubin"
    if cubin.is_file():
        return cubin.read_bytes()
    intermediate = {int(path.stem.split("_")[1]): path for path in directory.glob("compute_*.ptx")}
    usable = [number for number in intermediate if number <= capability]
    if usable:
        # the driver reads it as a C string
        return intermediate[max(usable)].read_bytes().rstrip(b"\0") + b"\0"
    there = ", ".join(sorted(path.stem for path in directory.glob("sm_*.cubin")))
    problem = f"has code for {there}, this GPU is sm_{capability}"
    try:
        if f"sm_{capability}" in nvrtc.architectures():
            source = (directory / SOURCE).read_text(encoding="utf-8")
            return ptxas.compile_without_spills(source, f"sm_{capability}")[1].code
        reason = f"NVRTC {nvrtc.version()} does not compile for it"
    except (InputError, MissingToolError) as error:
        reason = str(error)
    raise InputError(
        f"{directory.parent}: {problem}, and {reason}; build with --arch sm_{capability}"
    )


class CudaModule(library.Module):
    """One compiled library on the first GPU; call it with numpy arrays. Not thread-safe."""

    _DEVICES = (_CUDA, _FIRST, _POOLED_ALLOCATOR, _CPU, _FIRST, _POOLED_ALLOCATOR)

    def __init__(self, path: Path, digest: str, directory: Path) -> None:
        """Load the library with the machine code in `directory`. **Runs the library's code.**

        Raises InputError and MissingToolError as `compute_capability` and `machine_code` do.
        """
        code = machine_code(directory, compute_capability())
        with _answering(lambda source: code):
            super().__init__(path, digest)
        function = self._ffi.get_global_func
        self._allocate = function("runtime.TVMTensorAllocWithScope")
        self._upload = function("runtime.TVMTensorCopyFromBytes")
        self._download = function("runtime.TVMTensorCopyToBytes")
        self._inputs: list[Any] = []

    def __call__(self, *arrays: np.ndarray) -> Iterator[np.ndarray]:
        """Run on contiguous arrays in the CPU's memory; yields the outputs as new ones.

        Raises InputError when the driver refuses the code or the GPU's memory is full.
        """
        try:
            self._fill(arrays)
            result = self._main(*self._inputs)
            outputs = [result] if isinstance(result, self._ffi.Tensor) else list(result)
            yield from map(self._read, outputs)
        except RuntimeError as error:
            raise InputError(f"the GPU cannot run it: {_first_line(error)}") from error

    def enqueuer(self, *arrays: np.ndarray) -> Callable[[], Any]:
        """A function that starts an inference on these inputs and does not wait for its end."""
        self._fill(arrays)
        return lambda: self._main(*self._inputs)

    def inputs(self) -> list[np.ndarray]:
        """What the inputs hold now: a single kernel may have results among them."""
        return [self._read(tensor) for tensor in self._inputs]

    def _read(self, tensor: Any) -> np.ndarray:
        import numpy as np

        array = np.empty(tuple(tensor.shape), str(tensor.dtype))
        self._download(tensor, ctypes.c_void_p(array.ctypes.data), array.nbytes)
        return array

    def _fill(self, arrays: Sequence[np.ndarray]) -> None:
        if not self._inputs:
            self._inputs = [self._on_device(array) for array in arrays]
        for tensor, array in zip(self._inputs, arrays, strict=True):
            self._upload(tensor, ctypes.c_void_p(array.ctypes.data), array.nbytes)

    def timed_entries(self) -> tuple[Any, Any]:
        """InputError: a GPU's kernels run behind the CPU's back, so that its clock says nothing."""
        raise InputError(
            "a GPU's bundle has no timed entry; 'profile --static' needs no GPU, and "
            "benchmarks/gpu.py times its kernels on one"
        )

    def _on_device(self, array: np.ndarray) -> Any:
        device = self._ffi.device("cuda", _FIRST)
        return self._allocate(
            self._ffi.Shape(array.shape), self._ffi.dtype(str(array.dtype)), device, None
        )


@contextmanager
def _answering(answer: Callable[[str], bytes]) -> Iterator[None]:
    """TVM's question for machine code gets this answer; an older one comes back after."""
    ffi = library.tvm_ffi()
    with _lock:
        earlier = ffi.get_global_func(_CALLBACK, allow_missing=True)
        ffi.register_global_func(_CALLBACK, lambda source: answer(str(source)), override=True)
        try:
            yield
        finally:
            if earlier is None:
                ffi.registry.remove_global_func(_CALLBACK)
            else:
                ffi.register_global_func(_CALLBACK, earlier, override=True)


@cache
def _load_runtime() -> None:
    """Load the driver's library, CUDA's runtime and TVM's for CUDA into the process."""
    library.tvm_ffi()
    try:
        ctypes.CDLL("libcuda.so.1", ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise InputError("this machine has no NVIDIA driver (libcuda.so.1 was not found)") from (
            error
        )
    try:
        _load_cudart()
    except (ImportError, RuntimeError, OSError) as error:
        raise MissingToolError(
            "libcudart.so.13 was not found; run: pip install 'nvidia-cuda-runtime==13.*'"
        ) from error
    ours = library.find_runtime_library().with_name("libtvm_runtime_cuda.so")
    try:
        ctypes.CDLL(str(ours))
    except OSError as error:
        raise MissingToolError(
            f"TVM's CUDA runtime cannot be loaded ({error}); run: pip install 'apache-tvm==0.27.*'"
        ) from error


def _load_cudart() -> None:
    """Have libcudart.so.13 in the process, for TVM's library to find by name.

    Raises OSError, ImportError or RuntimeError when it is nowhere.
    """
    try:
        ctypes.CDLL("libcudart.so.13", ctypes.RTLD_GLOBAL)  # PyTorch's, or the system's
    except OSError:
        from cuda import pathfinder

        place = pathfinder.load_nvidia_dynamic_lib("cudart").abs_path
        ctypes.CDLL(place, ctypes.RTLD_GLOBAL)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else repr(error)

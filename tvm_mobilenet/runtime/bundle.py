"""A bundle, loaded and ready to run."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.errors import InputError, UsageError
from tvm_mobilenet.runtime import cuda, host, library, manifest
from tvm_mobilenet.runtime.manifest import Tensor

if TYPE_CHECKING:
    import numpy as np

ALIGNMENT = 64  # bytes; compiled code loads whole vectors from the inputs


class Program:
    """A compiled library with its inputs and outputs: arrays in, arrays out, by name."""

    def __init__(
        self,
        path: Path,
        digest: str,
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor],
        threads: int | None = None,
        *,
        preferred_threads: int | None = None,
        batches: Sequence[int] = (),
        entries: Mapping[int, str] | None = None,
        gpu: Path | None = None,
    ) -> None:
        """Load the library at `path`, whose SHA-256 is `digest`. **Runs the library's code.**

        `batches`: other sizes of the first axis that were proven: with any, `run` takes every size
        that is a sum of compiled ones. `entries`: its functions for compiled sizes but the first.
        `gpu`: of a library for NVIDIA GPUs, the directory with its machine code.

        `threads`: how many the caller's work is spread over. None takes `preferred_threads`, or as
        many of them as there are CPUs; that being None too, the physical cores.
        Raises InputError when the library does not load, or `threads` is more than there are CPUs.
        """
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        import numpy as np

        self._first = inputs[0].shape[0] if batches else 0  # 0: its one size, whatever the inputs
        self._entries = {self._first: library.MAIN, **(entries or {})}

        self._names = {tensor.name: None for tensor in inputs}.keys()  # a set in their order
        self._dtypes = {tensor.name: np.dtype(tensor.dtype) for tensor in inputs}
        self._exactly = threads is not None
        self.threads = library.choose_threads(threads, preferred_threads)
        self._module = (
            library.Module(path, digest) if gpu is None else cuda.CudaModule(path, digest, gpu)
        )
        self._busy = threading.Lock()

    def run(self, values: Mapping[str, Any], *, copy: bool = True) -> dict[str, np.ndarray]:
        """Outputs by name for inputs by name; see `Bundle.run`.

        Raises InputError when a name, shape or dtype is not the model's.
        """
        tensors = self._ordered(values)
        if self._first:
            batch = self._batch(values)
            if batch not in self._entries:
                return _joined([self.run(part) for part in self._parts(values, batch)])
            arrays = [self.checked(values, tensor, batch) for tensor in tensors]
            return self.run_arrays(arrays, copy=copy, entry=self._entries[batch])
        return self.run_arrays([self.checked(values, tensor) for tensor in tensors], copy=copy)

    def run_arrays(
        self, arrays: Sequence[np.ndarray], *, copy: bool = True, entry: str = library.MAIN
    ) -> dict[str, np.ndarray]:
        """`run` on arrays that `checked` returned, in the order of `inputs`: nothing is checked.

        `entry`: the library's function for their batch size.
        """
        import numpy as np

        with self._busy:  # the virtual machine has one stack of frames
            library.use_threads(self.threads, exactly=self._exactly)
            module = self._module
            made = module(*arrays) if entry == library.MAIN else module.call_entry(entry, *arrays)
            results = [np.from_dlpack(tensor) for tensor in made]
            if copy:  # a model may return its input's memory, or a constant's
                results = [result.copy() for result in results]
        return {out.name: array for out, array in zip(self.outputs, results, strict=True)}

    def trace(self, values: Mapping[str, Any], trace: np.ndarray, feed: np.ndarray) -> np.ndarray:
        """Every operator's result for the inputs; see `compiler_pass.traced_entry`.

        `trace`: (places,) float32, what to feed where `feed`, (operators,) int64, is not 0.
        Returns a new trace. Raises InputError for a library that was built without the entry.
        """
        arrays = [self.checked(values, tensor) for tensor in self._ordered(values)]
        filled = aligned(trace.copy())
        with self._busy:
            library.use_threads(self.threads, exactly=self._exactly)
            self._module.trace(arrays, filled, aligned(feed))
        return filled

    def timed_entries(self) -> tuple[Any, Any]:
        """See `library.Module.timed_entries`; threads are set up for the calling thread."""
        library.use_threads(self.threads, exactly=self._exactly)
        return self._module.timed_entries()

    def counted_entry(self) -> Any:
        """See `library.Module.counted_entry`; threads are set up for the calling thread."""
        library.use_threads(self.threads, exactly=self._exactly)
        return self._module.counted_entry()

    def checked(self, values: Mapping[str, Any], tensor: Tensor, batch: int = 0) -> np.ndarray:
        """The value of that input as a contiguous array aligned to `ALIGNMENT` bytes.

        `batch`: the size of its first axis instead of the tensor's own.
        """
        array = as_array(values[tensor.name], f"input '{tensor.name}'")
        if array.dtype != self._dtypes[tensor.name]:
            raise InputError(
                f"input '{tensor.name}' has dtype {array.dtype}, the model takes {tensor.dtype}; "
                f"convert it with .astype('{tensor.dtype}')"
            )
        shape = (batch, *tensor.shape[1:]) if batch else tensor.shape
        if array.shape != shape:
            raise InputError(
                f"input '{tensor.name}' has shape {array.shape}, the model takes {shape}"
            )
        return aligned(array)

    @property
    def batches(self) -> tuple[int, ...]:
        """Sizes of the first axis with kernels of their own; see `Bundle.batches`."""
        return tuple(sorted(self._entries)) if self._first else ()

    def _batch(self, values: Mapping[str, Any]) -> int:
        """The size of the first input's first axis, if it is a sum of compiled ones."""
        first = self.inputs[0]
        array = as_array(values[first.name], f"input '{first.name}'")
        batch = array.shape[0] if array.ndim else 0
        if batch not in self._entries and (batch < 1 or sum(self._sizes(batch)) != batch):
            sizes = ", ".join(map(str, self.batches))
            raise InputError(
                f"input '{first.name}' has shape {array.shape}, the model takes {first.shape}, or "
                f"a first axis that is a sum of {sizes}"
            )
        return batch

    def _sizes(self, batch: int) -> list[int]:
        """Compiled sizes, largest first, that make up as much of a batch as they can."""
        sizes = []
        for size in sorted(self._entries, reverse=True):
            sizes += [size] * (batch // size)
            batch %= size
        return sizes

    def _parts(self, values: Mapping[str, Any], batch: int) -> Iterator[dict[str, np.ndarray]]:
        """The values cut to compiled sizes."""
        arrays = {
            tensor.name: as_array(values[tensor.name], f"input '{tensor.name}'")
            for tensor in self.inputs
        }
        for tensor in self.inputs:
            if arrays[tensor.name].shape[:1] != (batch,):
                raise InputError(
                    f"input '{tensor.name}' has shape {arrays[tensor.name].shape}, "
                    f"'{self.inputs[0].name}' a first axis of {batch}"
                )
        start = 0
        for size in self._sizes(batch):
            yield {name: array[start : start + size] for name, array in arrays.items()}
            start += size

    def _ordered(self, values: Mapping[str, Any]) -> tuple[Tensor, ...]:
        wanted = self._names
        if values.keys() == wanted:
            return self.inputs
        for name in (*wanted, *values):
            if name not in values or name not in wanted:
                problem = "is not one of" if name in values else "is missing; the model takes"
                names = ", ".join(tensor.name for tensor in self.inputs)
                raise InputError(f"input '{name}' {problem} the inputs {names}")
        return self.inputs


class Bundle:
    """A bundle directory, loaded. `load` makes one; `run` runs it; a `with` block closes it.

    Safe to use from several threads: calls take turns. Load it once a thread for calls side by
    side.
    """

    def __init__(self, path: Path, contents: manifest.Manifest, program: Program) -> None:
        """Use `load`."""
        self.path = path
        self._contents = contents
        self._program: Program | None = program

    @classmethod
    def load(cls, path: str | Path, *, threads: int | None = None, verify: bool = True) -> Bundle:
        """Load a bundle from its directory. **This runs the code in it**: trust its origin first.

        `threads`: how many to run on; None takes what the bundle was built with, else the physical
        cores that this process may use. `verify` compares every file with its hash. Of a bundle
        for several targets the best variant that can run here is loaded, and is `Bundle.path`.
        Where its target names CPUs, of a chip with several kinds of core, the calling thread is
        bound to them.

        Raises InputError: no bundle, a changed file, names that lead out of the directory, code
        for another CPU, more threads than CPUs. MissingToolError: no TVM runtime.
        """
        directory = manifest.choose(Path(path))
        contents = manifest.read(directory)
        manifest.check_files(directory, contents, hashes=verify)
        gpu = directory / cuda.DIRECTORY if contents.kind == "cuda" else None
        reason = host.why_not_here(contents.architecture, contents.cpu_features)
        if reason is None and gpu is not None:
            reason = cuda.why_not_here()
        if reason:
            target = contents.document["target"]["name"]
            raise InputError(f"{directory}: was built for {target}, but {reason}")
        library.stay_on(contents.document["target"].get("affinity", ()))
        program = Program(
            directory / manifest.LIBRARY,
            contents.files[manifest.LIBRARY].sha256,
            contents.inputs,
            contents.outputs,
            threads,
            preferred_threads=contents.threads,
            batches=contents.batches,
            entries=contents.entries,
            gpu=gpu,
        )
        return cls(directory, contents, program)

    @property
    def manifest(self) -> Mapping[str, Any]:
        """The manifest as it was written: see the bundle's manifest.json."""
        return self._contents.document

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Name, shape and dtype of each input."""
        return self._contents.inputs

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """Name, shape and dtype of each output."""
        return self._contents.outputs

    @property
    def program(self) -> Program:
        """The loaded program; UsageError when the bundle was closed."""
        if self._program is None:
            raise UsageError(f"{self.path}: the bundle was closed; load it again")
        return self._program

    @property
    def threads(self) -> int:
        """How many threads it runs on."""
        return self.program.threads

    @property
    def batches(self) -> tuple[int, ...]:
        """Batch sizes with kernels of their own, where it is built for several; else nothing.

        Other sizes that are sums of them run in parts.
        """
        return self.program.batches

    def new_input(self, name: str | None = None, *, batch: int | None = None) -> np.ndarray:
        """An array of zeros for an input (None: the only one) that `run` reads without a copy.

        `batch`: its first axis, in a bundle for several batch sizes. Raises InputError when there
        is no such input.
        """
        import numpy as np

        for tensor in self.inputs:
            if tensor.name == name or (name is None and len(self.inputs) == 1):
                shape = tensor.shape if batch is None else (batch, *tensor.shape[1:])
                return aligned(np.zeros(shape, tensor.dtype))
        names = ", ".join(tensor.name for tensor in self.inputs)
        raise InputError(f"the model has inputs {names}; name one of them, not {name}")

    def run(self, x: Any, *, copy: bool = True) -> Any:
        """Run the model once.

        `x`: a numpy array, or anything that speaks DLPack and lies in the CPU's memory, of the
        input's shape and dtype, in a bundle for several batch sizes also with another first axis
        (see `batches`); or a mapping of such by input name. An array gives an array where
        the model has one output; everything else gives a dict by output name.
        Inputs are read where they are when they are contiguous, writable and aligned to 64 bytes,
        as `new_input`'s and PyTorch's tensors are; else they are copied first. `copy`: results own
        their memory; without it they lie where the model wrote them (or took them: a model
        may return its input), and that memory is theirs as long as they live.
        Raises InputError when a name, shape or dtype is not the model's.
        """
        if isinstance(x, dict | Mapping):  # dict first: the test for Mapping takes microseconds
            return self.program.run(x, copy=copy)
        if len(self.inputs) != 1:
            names = ", ".join(tensor.name for tensor in self.inputs)
            raise InputError(f"the model has inputs {names}: pass a mapping of arrays by name")
        results = self.program.run({self.inputs[0].name: x}, copy=copy)
        return results[self.outputs[0].name] if len(results) == 1 else results

    def close(self) -> None:
        """Free the model's memory; the bundle cannot run any more."""
        self._program = None

    def __enter__(self) -> Bundle:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        def listed(tensors: Sequence[Tensor]) -> str:
            return ", ".join(f"{t.name}: {t.dtype}{list(t.shape)}" for t in tensors)

        return f"Bundle({str(self.path)!r}, {listed(self.inputs)} -> {listed(self.outputs)})"


def _joined(results: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Outputs of parts of a batch as those of the whole."""
    import numpy as np

    return {name: np.concatenate([each[name] for each in results]) for name in results[0]}


def as_array(value: Any, what: str) -> np.ndarray:
    """The value as a numpy array without copying; InputError when it is no array in CPU memory."""
    import numpy as np

    if isinstance(value, np.ndarray):
        return value
    if not hasattr(value, "__dlpack__"):
        raise InputError(f"{what} is a {type(value).__name__}, not a numpy array or DLPack tensor")
    try:
        return np.from_dlpack(value)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{what} cannot be taken as an array in CPU memory: {error}") from error


def aligned(array: np.ndarray) -> np.ndarray:
    """The array, or a copy: contiguous, writable (DLPack asks for it), aligned to `ALIGNMENT`."""
    import numpy as np

    flags = array.flags
    if flags.c_contiguous and flags.writeable and array.size and _address(array) % ALIGNMENT == 0:
        return array
    store = np.empty(array.nbytes + ALIGNMENT, np.uint8)
    start = -store.ctypes.data % ALIGNMENT
    copy = store[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def _address(array: np.ndarray) -> int:
    """Where a writable, contiguous array lies.

    numpy's own `ctypes.data` takes several times as long: about one of the eight microseconds that
    a run added to the compiled network with it.
    """
    return ctypes.addressof(ctypes.c_char.from_buffer(array.data))

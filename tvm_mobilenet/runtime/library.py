"""TVM's runtime library: finding it, loading it, its thread pool, and one compiled module.

Works beside `import tvm` in the same process, whichever comes first.
"""

from __future__ import annotations

import ctypes
import importlib.util
import mmap
import os
import sys
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from tvm_mobilenet.errors import InputError, MissingToolError, TvmMobilenetError

_LIBRARY_NAME = {"darwin": "libtvm_runtime.dylib", "win32": "tvm_runtime.dll"}.get(
    sys.platform, "libtvm_runtime.so"
)
_CPU, _FIRST, _POOLED_ALLOCATOR = 1, 0, 2  # vm_initialization: device type, its number, allocator
MAIN = "main"  # the network for the first batch size
TIMED_ENTRY = "main_timed"  # see compiler_pass.timed_entry
TRACED_ENTRY = "main_traced"  # see compiler_pass.traced_entry
COUNTED_ENTRY = "main_counted"  # see compiler_pass.counted_entry
_SHARE_ALL_CORES = -3  # affinity mode: no thread is bound to one core, the caller's least of all
_pool = threading.local()  # TVM keeps one thread pool for each calling thread
_digest_of_name: dict[str, str] = {}  # name given to the dynamic linker -> what that file held
_loaded: weakref.WeakValueDictionary[str, _Library] = weakref.WeakValueDictionary()
_lock = threading.Lock()


@cache
def tvm_ffi() -> ModuleType:
    """The tvm_ffi package with TVM's runtime library loaded.

    Raises MissingToolError when either is not installed.
    """
    try:
        with _without_extras():
            import tvm_ffi
    except ImportError as error:
        raise MissingToolError(
            "tvm_ffi is missing; run: pip install 'apache-tvm-ffi>=0.1.14.post0,<0.1.15'"
        ) from error
    if "tvm" not in sys.modules:
        ctypes.CDLL(str(find_runtime_library()), ctypes.RTLD_GLOBAL)
    return tvm_ffi


def find_runtime_library() -> Path:
    """Where libtvm_runtime is: $TVM_LIBRARY_PATH, else the installed tvm package (not imported)."""
    directories = []
    if os.environ.get("TVM_LIBRARY_PATH"):
        directories.append(Path(os.environ["TVM_LIBRARY_PATH"]))
    package = importlib.util.find_spec("tvm")
    if package is not None:
        directories += [Path(p) / "lib" for p in package.submodule_search_locations or ()]
    for directory in directories:
        if (directory / _LIBRARY_NAME).is_file():
            return directory / _LIBRARY_NAME
    where = ", ".join(map(str, directories)) or "TVM_LIBRARY_PATH is not set, tvm is not installed"
    raise MissingToolError(
        f"{_LIBRARY_NAME} was not found ({where}); run: pip install 'apache-tvm==0.27.*'"
    )


def choose_threads(asked: int | None = None, preferred: int | None = None) -> int:
    """The number asked for; else the preferred one; else the physical cores usable here.

    The last two are cut to the CPUs that this process may use; InputError when the first is more.
    """
    usable = usable_cpus()
    if asked is not None:
        if not 1 <= asked <= len(usable):
            raise InputError(
                f"threads must be from 1 to {len(usable)}, the CPUs usable here, not {asked}"
            )
        return asked
    if preferred is not None:
        return min(preferred, len(usable))
    cores = set()
    for cpu in usable:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.add(siblings.read_text() if siblings.is_file() else str(cpu))
    return len(cores)


def stay_on(cpus: Iterable[int]) -> None:
    """Bind the calling thread, and what it starts, to those of the CPUs that it may use, if any.

    For chips with several kinds of core, where a target names its own.
    """
    wanted = usable_cpus() & set(cpus)
    if wanted and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, wanted)


def use_threads(threads: int, *, exactly: bool) -> None:
    """Make TVM run the calling thread's work on that many threads, the caller being one of them.

    TVM's own default halves the CPUs and binds the calling thread to the first of them, for
    PyTorch and everything else in the process too; here no thread is bound. TVM keeps a pool for
    each calling thread until the process ends, so threads that come and go should run on one: for
    one, only the main thread gets others, which a later, larger number needs. With `exactly`,
    raises TvmMobilenetError when TVM already started a smaller pool in this thread.
    """
    if getattr(_pool, "asked", None) != threads:
        ffi = tvm_ffi()
        cpus = [str(cpu) for cpu in sorted(usable_cpus())]
        configure = ffi.get_global_func("runtime.config_threadpool")
        if threads > 1 or threading.current_thread() is threading.main_thread():
            configure(_SHARE_ALL_CORES, len(cpus), cpus)  # creates the pool in full: it cannot grow
            # the last argument lets a parallel region on one thread skip the pool: 0.04 us, not 2.7
            configure(_SHARE_ALL_CORES, threads, cpus, threads)
        else:
            configure(_SHARE_ALL_CORES, 1, cpus[:1], 1)  # starts no thread, but binds the caller
            if hasattr(os, "sched_setaffinity"):
                os.sched_setaffinity(0, map(int, cpus))
        _pool.asked, _pool.got = threads, ffi.get_global_func("runtime.NumThreads")()
    if exactly and _pool.got < threads:
        raise TvmMobilenetError(
            f"TVM already started a pool of {_pool.got} threads here, too few for {threads}; "
            f"set TVM_NUM_THREADS={threads} before the first use of TVM"
        )


class Module:
    """One compiled library in TVM's virtual machine; call it with tensors. Not thread-safe."""

    _DEVICES: tuple[int, ...] = (_CPU, _FIRST, _POOLED_ALLOCATOR)

    def __init__(self, path: Path, digest: str) -> None:
        """Load the library; `digest` is its SHA-256. **Runs the library's code.**

        Raises InputError when it cannot be loaded here.
        """
        self._ffi = tvm_ffi()
        try:
            self._library = _shared_library(path, digest)
            machine = self._library.module["vm_load_executable"]()
            machine["vm_initialization"](*self._DEVICES)
            self._machine, self._main = machine, machine[MAIN]
            _forget_file_pages(path)
        except (RuntimeError, ValueError, TypeError, AttributeError) as error:
            message = str(error).strip().splitlines()
            raise InputError(
                f"{path}: TVM's runtime cannot load it: {message[0] if message else error!r}"
            ) from error

    def __call__(self, *arrays: Any) -> Iterator[Any]:
        """Run on float arrays aligned to 64 bytes; yields the outputs as DLPack tensors."""
        return self._run(self._main, arrays)

    def call_entry(self, name: str, *arrays: Any) -> Iterator[Any]:
        """The same with the function for another batch size; InputError where there is none."""
        return self._run(self._entry(name, name), arrays)

    def _run(self, function: Any, arrays: Sequence[Any]) -> Iterator[Any]:
        result = function(*map(self._ffi.from_dlpack, arrays))
        if isinstance(result, self._ffi.Tensor):
            yield result
        else:
            yield from result

    def timed_entries(self) -> tuple[Any, Any]:
        """`main` and `TIMED_ENTRY` as they are, to be called with `tvm_ffi` tensors.

        The latter takes an int64 tensor after the inputs (see `compiler_pass.timed_entry`).
        Raises InputError for a library that was built without it.
        """
        return self._main, self._entry(TIMED_ENTRY, "timed")

    def counted_entry(self) -> Any:
        """`COUNTED_ENTRY` as it is; raises as `timed_entries`."""
        return self._entry(COUNTED_ENTRY, "counted")

    def trace(self, arrays: Sequence[Any], trace: Any, feed: Any) -> None:
        """Run `TRACED_ENTRY` on the inputs; `trace` is filled (see `compiler_pass.traced_entry`).

        All arrays aligned to 64 bytes. Raises InputError for a library that was built without it.
        """
        traced = self._entry(TRACED_ENTRY, "traced")
        traced(*map(self._ffi.from_dlpack, [*arrays, trace, feed]))

    def _entry(self, name: str, kind: str) -> Any:
        try:
            return self._machine[name]
        except (AttributeError, RuntimeError) as error:
            raise InputError(f"has no {kind} entry: it was built by an older release") from error


def _forget_file_pages(library: Path) -> None:
    """Let the kernel take back the pages of a library's file that held the weights.

    Loading copied them into tensors; the pages are read again should they be needed. Only Linux
    tells which they are; elsewhere the weights stay in memory twice.
    """
    smaps = Path("/proc/self/smaps")
    if not smaps.is_file():
        return
    libc = ctypes.CDLL(None)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    name, span = str(library.resolve()), None
    for line in smaps.read_text(encoding="utf-8").splitlines():
        fields = line.split(maxsplit=5)  # addresses, permissions, offset, device, inode, path
        if "-" in fields[0]:
            mine = len(fields) == 6 and fields[1] == "r--p" and fields[5] == name
            span = tuple(int(at, 16) for at in fields[0].split("-")) if mine else None
        elif span and fields[:2] == ["Anonymous:", "0"]:  # as in the file: nothing relocated
            # advice: that it may be refused is no harm
            libc.madvise(span[0], span[1] - span[0], mmap.MADV_DONTNEED)


def usable_cpus() -> set[int]:
    """The CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


class _Library:
    """A loaded library, shared by all who load it: two would overwrite each other's context."""

    def __init__(self, name: str) -> None:
        # Not kept alive by tvm_ffi: when its last user goes, the library is unloaded.
        self.module = tvm_ffi().load_module(name, keep_module_alive=False)


def _shared_library(path: Path, digest: str) -> _Library:
    with _lock:
        name = _linker_name(path, digest)
        library = _loaded.get(name)
        if library is None:
            library = _loaded[name] = _Library(name)
        return library


def _linker_name(path: Path, digest: str) -> str:
    """A spelling of the path under which no other content was loaded in this process.

    The dynamic linker takes a known name for a loaded library without looking at the file; after a
    bundle was built anew in the same place it would hand out the old code.
    """
    name, directory = "", str(path.parent.resolve())
    while not name or _digest_of_name.setdefault(name, digest) != digest:
        directory += "/." if name else ""
        name = f"{directory}/{path.name}"
    return name


@contextmanager
def _without_extras() -> Iterator[None]:
    """Keep `import tvm_ffi` from importing PyTorch (2.5 s) and cuda-bindings (6 MiB of memory).

    Its own need for them is optional: tensors pass through DLPack either way, and no stream is
    passed as an object. What somebody has imported already stays.
    """
    hidden = [name for name in ("torch", "cuda.bindings") if name not in sys.modules]
    if "tvm_ffi" in sys.modules:
        hidden = []
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]

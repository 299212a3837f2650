"""A connection to one device, and what both measuring and deploying do over it.

Runs in the worker's process (see `process`): TVM's calls here wait as long as the device takes.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.remote.errors import LostDeviceError, RemoteError
from tvm_mobilenet.remote.tracker import Grant

if TYPE_CHECKING:
    from tvm.rpc import RPCSession

_SHARE_ALL_CORES = -3  # affinity mode, as in runtime.library: no thread is bound to one core


@contextlib.contextmanager
def session(grant: Grant, seconds: float) -> Iterator[RPCSession]:
    """A session that the device itself ends after that many seconds.

    Failures inside the block come out as LostDeviceError (the connection broke) or as RemoteError
    (the device answered with an error, or ended the session).
    """
    import tvm.error
    from tvm import rpc

    try:
        yield rpc.connect(
            grant.address.host, grant.address.port, grant.password, session_timeout=seconds
        )
    except tvm.error.RPCSessionTimeoutError as error:
        raise RemoteError(f"{grant.address}: stopped after {seconds:g} s") from error
    except tvm.error.RPCError as error:
        raise RemoteError(f"{grant.address}: {first_line(error)}") from error
    except tvm.error.InternalError as error:
        reason = first_line(error)
        if "RPCCode::kReturn" in str(error):  # TVM expected an answer and got the end
            reason = "closed by the device"
        elif "sock.Connect" in str(error):
            reason = "no RPC server answers there"
        raise LostDeviceError(f"{grant.address}: connection lost ({reason})") from error


@contextlib.contextmanager
def uploaded(connection: RPCSession, library: Path) -> Iterator[Any]:
    """A shared library loaded on the device under a name of its own, and its file removed at the
    end. **Runs the library's code there.**"""
    name = f"{secrets.token_hex(8)}{library.suffix}"
    connection.upload(str(library), name)
    try:
        yield connection.load_module(name)
    finally:
        # With the connection gone there is nobody to ask: the server removes the session's folder.
        with contextlib.suppress(RuntimeError):
            connection.remove(name)


def use_threads(connection: RPCSession, threads: int) -> None:
    """Make the device run this session's work on that many threads, the server's being one."""
    configure = connection.get_function("runtime.config_threadpool")
    # The list of CPUs is made over there: TVM's RPC passes no containers. It makes the pool as
    # large as is asked for; without it TVM halves the number of CPUs.
    cpus = connection.get_function("ffi.Array")(*(str(cpu) for cpu in range(threads)))
    configure(_SHARE_ALL_CORES, threads, cpus)
    # the last argument lets a parallel region on one thread skip the pool
    configure(_SHARE_ALL_CORES, threads, cpus, threads)


def first_line(error: BaseException) -> str:
    """What an error of TVM's says, without what surrounds it."""
    lines = [line.strip() for line in str(error).splitlines()]
    telling = [line for line in lines if line and "Error caught from RPC call" not in line]
    return telling[0][:300] if telling else type(error).__name__

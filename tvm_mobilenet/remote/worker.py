"""The process that holds connections to devices: `python -m tvm_mobilenet.remote.worker FD`.

It calls one function after the other that it is told over FD; `process.py` is the other end.
"""

from __future__ import annotations

import gc
import sys
from multiprocessing.connection import Connection
from typing import Any

from tvm_mobilenet.child import die_with_parent
from tvm_mobilenet.remote.errors import RemoteError


def main(descriptor: int) -> None:
    """Answer calls until the other end closes."""
    die_with_parent()
    from tvm_mobilenet.runtime.library import tvm_ffi

    tvm_ffi()  # first, since it keeps PyTorch out
    import tvm.rpc  # noqa: F401  (before the first call, whose time is limited)

    with Connection(descriptor) as connection:
        connection.send((True, None))
        while True:
            try:
                function, arguments, named = connection.recv()
            except EOFError:
                return
            connection.send(_answer(function, arguments, named))
            gc.collect()  # a session ends with the last of its remote objects


def _answer(function: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[bool, Any]:
    try:
        return True, function(*arguments, **named)
    except RemoteError as error:
        return False, type(error)(str(error))  # without its traceback, which keeps the session
    except Exception as error:  # whatever else goes wrong is the answer too
        return False, RemoteError(" ".join(f"{type(error).__name__}: {error}".split()))


if __name__ == "__main__":
    main(int(sys.argv[1]))

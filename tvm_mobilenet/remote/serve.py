"""TVM's own tracker and server, in this process and for as long as it lives.

Not through `tvm.rpc.Server` and `Tracker`: those start a process that outlives a killed parent, and
whose listener ends for good when one candidate crashes its session.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from tvm_mobilenet.child import die_with_parent
from tvm_mobilenet.errors import InputError
from tvm_mobilenet.remote.tracker import Address, Tracker, check_key
from tvm_mobilenet.runtime.library import tvm_ffi

_HANDSHAKE_SECONDS = 5.0
_LEAVE_SECONDS = 2.0  # for a session to end by itself once its client has gone
_KEEPALIVE_IDLE, _KEEPALIVE_INTERVAL, _KEEPALIVE_PROBES = 30, 10, 3  # seconds, seconds, number


class StoppedError(KeyboardInterrupt):
    """SIGTERM or Ctrl-C came. A KeyboardInterrupt, since asyncio lets nothing else through."""


Listener = TypeVar("Listener", bound=socket.socket)


def listen(host: str, port: int, kind: type[Listener]) -> Listener:
    """A listening socket; port 0 takes a free one. InputError when that cannot be had."""
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = kind(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen()
        except OSError:
            listener.close()
            raise
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise InputError(
                f"port {port} of {host} is in use; choose another with --port, or --port 0"
            ) from error
        raise InputError(f"cannot listen at {Address(host, port)}: {error.strerror}") from error
    return listener


def bound(listener: socket.socket) -> Address:
    """Where it listens."""
    host, port = listener.getsockname()[:2]
    return Address(host, port)


def serve_tracker(
    listener: socket.socket, *, ready: Callable[[], None], verbose: bool = False
) -> None:
    """Be a tracker until SIGTERM or Ctrl-C, which raise StoppedError; `ready` is called first."""
    with _stoppable():
        _import_light()
        from tvm.rpc import base, tracker

        tracker.logger.setLevel(logging.INFO if verbose else logging.WARNING)
        ready()
        tracker._tracker_server(listener, base.random_key("tracker"))


def serve_device(
    listener: SessionListener,
    key: str,
    tracker: Tracker | None,
    *,
    advertise: str | None = None,
    ready: Callable[[], None],
    say: Callable[[str], None],
    verbose: bool = False,
) -> None:
    """Be a device until SIGTERM or Ctrl-C, which raise StoppedError; `ready` is called first.

    key: what clients ask the tracker for; without a tracker it may be empty, and clients must know.
    advertise: the host by which clients reach this one; None leaves it to the tracker, which takes
        the address that the registration came from.
    say: told in one line of each session that crashed, and of a tracker that has gone.

    Raises InputError when the tracker is not reached at the start.
    """
    if key or tracker is not None:
        check_key(key)
    where = None if tracker is None else (tracker.address.host, tracker.address.port)
    home = Path.cwd()
    with _stoppable():
        if tracker is not None:
            tracker.devices()
        _import_light()
        from tvm.rpc import server

        _load_extra_functions()
        server.logger.setLevel(logging.INFO if verbose else logging.ERROR)
        # TVM forks a process for each session
        own = os.getpid()
        os.register_at_fork(after_in_child=lambda: _be_a_session(listener.accepted, own))
        ready()
        while True:
            try:
                server._listen_loop(listener, bound(listener).port, key, where, None, advertise)
            except RuntimeError as error:  # a session's process crashed, or the tracker has gone
                say(str(error))
            os.chdir(home)


def _import_light() -> None:
    """TVM without compiler and PyTorch: this process has no other use for it."""
    os.environ.setdefault("TVM_USE_RUNTIME_LIB", "1")  # read when tvm is imported
    tvm_ffi()


def _be_a_session(connection: int, server: int) -> None:
    """After the fork: die of the signals that TVM stops a session with, with the server, and with
    the client. TVM notices that its client has gone only after the work that it asked for."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    die_with_parent(server)
    if hasattr(select, "POLLRDHUP"):  # Linux
        threading.Thread(target=_end_with_client, args=(connection,), daemon=True).start()


def _end_with_client(connection: int) -> None:
    poll = select.poll()
    poll.register(connection, select.POLLRDHUP)
    poll.poll()
    time.sleep(_LEAVE_SECONDS)
    os._exit(0)


def _load_extra_functions() -> None:
    """The functions that TVM's own measuring asks a server for (`random_fill_for_measure`)."""
    from tvm.libinfo import package_lib_paths

    for directory in package_lib_paths():
        library = Path(directory) / "libtvm_runtime_extra.so"
        if library.is_file():
            ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
            return


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM and SIGINT raise StoppedError inside the block; sessions are ended behind it."""
    import multiprocessing

    def stop(number: int, frame: FrameType | None) -> None:
        raise StoppedError(signal.Signals(number).name)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for child in multiprocessing.active_children():
            child.kill()
            child.join()


class SessionListener(socket.socket):
    """Hands out only connections that have begun to speak; `accepted` is the last one's descriptor.

    TVM's listener reads the first bytes of a connection without limit: a port scan would block it.
    """

    accepted = -1

    def accept(self) -> tuple[socket.socket, Any]:
        """As socket.accept; OSError, which TVM's listener takes as try again, for a silent one."""
        connection, address = super().accept()
        try:
            connection.settimeout(_HANDSHAKE_SECONDS)
            if len(connection.recv(4, socket.MSG_PEEK | socket.MSG_WAITALL)) < 4:
                raise ConnectionError("closed before the first message")
            connection.settimeout(None)
            _keep_alive(connection)
            self.accepted = connection.fileno()
        except OSError:
            connection.close()
            raise
        return connection, address


def _keep_alive(connection: socket.socket) -> None:
    """Notice a client that vanished, so that its session does not hold the device for ever."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", _KEEPALIVE_IDLE),
        ("TCP_KEEPINTVL", _KEEPALIVE_INTERVAL),
        ("TCP_KEEPCNT", _KEEPALIVE_PROBES),
    ):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

"""`tvm-mobilenet rpc`: TVM's own tracker and server, what a tracker knows, a server for a board."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tvm_mobilenet.cli.common import add_json, add_target_argument, emit_json, print_table
from tvm_mobilenet.errors import UsageError

if TYPE_CHECKING:
    from tvm_mobilenet.cli.common import Console
    from tvm_mobilenet.remote.tracker import Address

HELP = (
    "Start TVM's RPC tracker (it knows the devices) or server (a device that runs what it is "
    "sent), until Ctrl-C or SIGTERM; list a tracker's devices; or make the package of a server "
    "for a board without Python. TVM's RPC has no authentication and no encryption: tracker and "
    "server listen on this machine alone unless --host says otherwise; reach others through a "
    "tunnel."
)
TRACKER_PORT, SERVER_PORT, LOOPBACK = 9190, 9090, "127.0.0.1"
_LOOPBACKS = ("127.0.0.1", "::1", "localhost")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """rpc tracker|server|devices|package [--host H] [--port P] [--rpc-tracker H:P] ..."""
    parser.add_argument(
        "action",
        choices=("tracker", "server", "devices", "package"),
        help="what to start, list or make",
    )
    parser.add_argument(
        "--host",
        metavar="HOST",
        help=f"address to listen at, or of the tracker to ask (default {LOOPBACK})",
    )
    parser.add_argument(
        "--port",
        type=_port,
        metavar="PORT",
        help=f"port to listen at, 0 for any free one, or of the tracker to ask (default "
        f"{TRACKER_PORT} for the tracker, {SERVER_PORT} for a server)",
    )
    parser.add_argument(
        "--rpc-tracker",
        metavar="HOST:PORT",
        help="server: the tracker to register with (default: none); devices: the tracker to ask",
    )
    parser.add_argument(
        "--rpc-key",
        metavar="KEY",
        help="server: the kind of device, which clients ask the tracker for",
    )
    parser.add_argument(
        "--advertise",
        metavar="HOST",
        help="server: the host by which clients reach it (default: where its registration came "
        "from)",
    )
    group = parser.add_argument_group("options of package")
    add_target_argument(parser)
    group.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="the new folder to copy to the board"
    )
    group.add_argument("--cc", metavar="COMMAND", help="C++ compiler for the board")
    group.add_argument(
        "--runtime",
        type=Path,
        metavar="DIR",
        help="libtvm_runtime.so and libtvm_ffi.so for the board (default: of the packages "
        "installed here, or of the same versions' wheels, which pip downloads)",
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Run the tracker or server until it is stopped, print the devices, or make the package."""
    actions = {"tracker": _tracker, "server": _server, "devices": _devices, "package": _package}
    return actions[args.action](args)


def _tracker(args: argparse.Namespace) -> int:
    import socket

    from tvm_mobilenet.remote import serve

    port = TRACKER_PORT if args.port is None else args.port
    with serve.listen(args.host or LOOPBACK, port, socket.socket) as listener:
        where = serve.bound(listener)
        try:
            serve.serve_tracker(
                listener, ready=lambda: _announce(args, where), verbose=bool(args.verbose)
            )
        except serve.StoppedError as stopped:
            args.console.info(f"tracker at {where} stopped by {stopped}")
    return 0


def _server(args: argparse.Namespace) -> int:
    from tvm_mobilenet.remote import serve
    from tvm_mobilenet.remote.tracker import Address, Tracker

    if args.rpc_tracker and not args.rpc_key:
        raise UsageError("a server that registers with a tracker needs --rpc-key KEY")
    host = args.host or LOOPBACK
    tracker = Tracker(Address.parse(args.rpc_tracker)) if args.rpc_tracker else None
    far = tracker is not None and tracker.address.host not in _LOOPBACKS
    if far and host in _LOOPBACKS and not args.advertise:
        args.console.warn(
            f"listening at {host} alone, while tracker {args.rpc_tracker} will send clients to "
            "this machine's address there: tunnel to the tracker, or give --host"
        )
    port = SERVER_PORT if args.port is None else args.port
    with serve.listen(host, port, serve.SessionListener) as listener:
        where = serve.bound(listener)
        try:
            serve.serve_device(
                listener,
                args.rpc_key or "",
                tracker,
                advertise=args.advertise,
                ready=lambda: _announce(args, where),
                say=args.console.warn,
                verbose=bool(args.verbose),
            )
        except serve.StoppedError as stopped:
            args.console.info(f"server at {where} stopped by {stopped}")
    return 0


def _announce(args: argparse.Namespace, where: Address) -> None:
    """The warning on stderr, then where it listens on stdout."""
    _warn(args.console, args.action, where)
    if args.json:
        emit_json(f"rpc-{args.action}", {"host": where.host, "port": where.port})
    else:
        sys.stdout.write(f"{where}\n")
    sys.stdout.flush()


def _warn(console: Console, action: str, where: Address) -> None:
    reach = "every user of this machine" if where.host in _LOOPBACKS else f"whoever reaches {where}"
    example = (
        f"ssh -N -L {where.port}:127.0.0.1:{where.port} THIS_MACHINE"
        if action == "tracker"
        else f"ssh -N -L {TRACKER_PORT}:127.0.0.1:{TRACKER_PORT} "
        f"-R {where.port}:127.0.0.1:{where.port} TRACKER_MACHINE"
    )
    console.warn(
        f"TVM's RPC has no authentication and no encryption: {reach} can run code as this user. "
        f"Do not open it to a network; tunnel it instead, here or on the other side: {example}"
    )
    console.info(f"{action} listens at {where}; Ctrl-C stops it")


def _devices(args: argparse.Namespace) -> int:
    from tvm_mobilenet.remote.tracker import Address, Tracker

    asked = Address(args.host or LOOPBACK, TRACKER_PORT if args.port is None else args.port)
    address = Address.parse(args.rpc_tracker) if args.rpc_tracker else asked
    devices = Tracker(address).devices()
    if args.json:
        keys = [
            {
                "key": entry.key,
                "devices": [str(where) for where in entry.addresses],
                "free": entry.free,
                "busy": entry.busy,
                "pending": entry.pending,
            }
            for entry in devices
        ]
        emit_json("rpc-devices", {"tracker": str(address), "keys": keys})
        return 0
    rows = [
        (
            entry.key,
            len(entry.addresses),
            entry.free,
            entry.busy,
            entry.pending,
            " ".join(map(str, entry.addresses)),
        )
        for entry in devices
    ]
    print_table(("KEY", "DEVICES", "FREE", "BUSY", "PENDING", "ADDRESSES"), rows)
    if not rows:
        args.console.info(f"no device has registered with tracker {address}")
    return 0


def _package(args: argparse.Namespace) -> int:
    from tvm_mobilenet.remote.native import package_server

    if args.output is None:
        raise UsageError("'rpc package' needs -o DIR, the folder to make")
    folder = package_server(
        args.target, args.output, cc=args.cc, runtime=args.runtime, progress=args.console.info
    )
    files = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
    if args.json:
        emit_json("rpc-package", {"folder": folder, "target": args.target, "files": files})
    else:
        size = sum(files.values()) / 1e6
        sys.stdout.write(
            f"{folder}: TVM's RPC server for {args.target}, {size:.1f} MB; see its README.txt\n"
        )
    return 0


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port number from 0 to 65535")
    return int(text)

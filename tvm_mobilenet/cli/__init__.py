"""The command line: picks the command, applies settings, turns errors into exit codes.

Each command is one file, `cli/<command>.py`, with `HELP`, `add_arguments(parser)` and
`run(args) -> exit code`; the file is imported only when its command is chosen.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import importlib.metadata
import os
import select
import sys
import tempfile
import traceback
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NoReturn

from tvm_mobilenet.cli.common import Console
from tvm_mobilenet.errors import InputError, MissingToolError, TvmMobilenetError, UsageError

PROG = "tvm-mobilenet"
_STDOUT = 1  # its file descriptor
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # wherever it is written to

COMMANDS: tuple[tuple[str, str], ...] = (
    ("export", "PyTorch model to a checked ONNX file"),
    ("cost", "mult-adds and parameters, per layer kind and in all"),
    ("build", "compile a model for a target, prove it equal to PyTorch, write a bundle"),
    ("tune", "search the schedules of a model's operators on a device, record the winners"),
    ("validate", "numerical parity of a bundle or model with the reference"),
    ("profile", "where the time goes, operator by operator, against the machine's limits"),
    ("report", "the MobileNet paper's questions, answered on this machine"),
    ("bench", "latency against other runtimes, interleaved in one run"),
    ("run", "classify images with a bundle"),
    ("bundle", "look into bundles: inspect, verify, diff; merge those of several targets"),
    ("deploy", "prove and time a bundle on another machine, over RPC"),
    ("rpc", "start TVM's RPC tracker or server, or list a tracker's devices"),
    ("targets", "the devices it builds for, and this machine's own description"),
    ("logs", "tuning records: list, show, merge, check, prune"),
    ("doctor", "what is installed, what is missing, and the fix for each"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (see `tvm_mobilenet.errors`)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    verbose = 0
    try:
        args = _parser(arguments).parse_args(arguments)
        verbose = args.verbose
        args.console = Console(verbose)
        code: int = load_command(args.command).run(args)
        sys.stdout.flush()
        return code
    except TvmMobilenetError as error:
        if verbose >= 2:
            traceback.print_exception(error)
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError as error:
        if _stdout_is_closed():
            return 141  # what a shell reports for SIGPIPE: the reader (head, less) has gone
        return _unexpected(error, verbose)
    except OSError as error:
        if error.errno not in _NO_ROOM:
            return _unexpected(error, verbose)
        place = error.filename or f"temporary files in {tempfile.gettempdir()}"
        return _fail(
            f"{place}: {error.strerror}; free some space, or set TMPDIR to another directory",
            InputError.exit_code,
        )
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package in ("", "tvm_mobilenet"):
            return _unexpected(error, verbose)
        fix = f"'{PROG} doctor' says how to get it"
        return _fail(
            f"the Python package of '{package}' is missing; {fix}", MissingToolError.exit_code
        )
    except Exception as error:
        return _unexpected(error, verbose)


def load_command(name: str) -> ModuleType:
    """The module of one command."""
    return importlib.import_module(f"tvm_mobilenet.cli.{name}")


def _fail(message: str, code: int) -> int:
    sys.stderr.write(f"{PROG}: error: {message}\n")
    return code


def _unexpected(error: BaseException, verbose: int) -> int:
    if verbose >= 2:
        traceback.print_exception(error)
    summary = " ".join(f"{type(error).__name__}: {error}".split())
    return _fail(f"unexpected {summary}; rerun with -vv for the traceback", 1)


def _stdout_is_closed() -> bool:
    """Whether the pipe that broke is stdout; if so, silences the flush at interpreter exit."""
    poll = select.poll()
    poll.register(_STDOUT, 0)  # errors are reported without being asked for
    if not any(events & select.POLLERR for _, events in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), _STDOUT)
    return True


class _Version(argparse.Action):
    """--version; asks the installed metadata only when it is given."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        sys.stdout.write(f"{PROG} {importlib.metadata.version('tvm-mobilenet')}\n")
        parser.exit()


class _Parser(argparse.ArgumentParser):
    """argparse with errors as `UsageError`: one line and the exit code from one place."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see '{self.prog} --help'")


class _CommandParser(_Parser):
    """The parser of one command: imports the command's file when it is chosen."""

    def __init__(self, *, command: str, config: str | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._command, self._config = command, config

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        module = load_command(self._command)
        self.description = module.HELP
        module.add_arguments(self)
        _add_common_options(self, default=argparse.SUPPRESS)
        if not {"-h", "--help"} & set(args or ()):
            from tvm_mobilenet.cli.settings import apply_settings

            apply_settings(self, self._command, self._config)
        return super().parse_known_args(args, namespace)


def _add_common_options(parser: argparse.ArgumentParser, *, default: object = None) -> None:
    group = parser.add_argument_group("common options")
    group.add_argument(
        "-v",
        "--verbose",
        action="count",
        default=0 if default is None else default,
        help="say more on stderr; -vv adds the traceback of an unexpected error",
    )
    group.add_argument(
        "--config",
        metavar="FILE",
        default=default,
        help="TOML file of option values (default: [tool.tvm-mobilenet] in ./pyproject.toml)",
    )


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=PROG,
        description="MobileNet from PyTorch or ONNX to fast, verified native code with TVM.",
        epilog="Option values come from the flag, else the environment (TVM_MOBILENET_TARGET, "
        "TVM_MOBILENET_THREADS, ...), else --config FILE or [tool.tvm-mobilenet] in "
        "./pyproject.toml. Exit codes: 0 done; 1 unexpected error; 2 usage; 3 bad input; "
        "4 a tool or package is missing; 5 parity failed; 6 nothing was measured; "
        "130 interrupted.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    _add_common_options(parser)
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", required=True, parser_class=_CommandParser
    )
    for name, summary in COMMANDS:
        commands.add_parser(name, help=summary, command=name, config=_config_option(arguments))
    return parser


def _config_option(arguments: Sequence[str]) -> str | None:
    """The value of --config, wherever it stands: settings must be read before the rest."""
    finder = _Parser(add_help=False, allow_abbrev=False, prog=PROG)
    finder.add_argument("--config", default=os.environ.get("TVM_MOBILENET_CONFIG"))
    config: str | None = finder.parse_known_args(arguments)[0].config
    return config

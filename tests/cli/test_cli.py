"""The command line's frame: lazy imports, errors, settings, output."""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import math
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from tvm_mobilenet import cli as command_line
from tvm_mobilenet import errors
from tvm_mobilenet.cli import COMMANDS, main
from tvm_mobilenet.cli.common import (
    Console,
    add_json,
    add_model_arguments,
    add_target_argument,
    add_threads_argument,
    emit_json,
    model_options,
    print_table,
)

HEAVY = ("numpy", "onnx", "onnxruntime", "onnxscript", "PIL", "scipy", "torch", "tvm", "tvm_ffi")


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> types.ModuleType:
    """A command 'probe' that keeps the arguments it was run with; set `probe.raises` to fail."""
    module = types.ModuleType("tvm_mobilenet.cli.probe")
    module.HELP = "Keep the arguments."
    module.raises = None
    module.args = None

    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("model", nargs="?")
        add_model_arguments(parser)
        add_target_argument(parser)
        add_threads_argument(parser)
        add_json(parser)
        parser.add_argument("--against", nargs="+", choices=("onnxruntime", "torch"))
        parser.add_argument("-o", "--output", required=True)

    def run(args: argparse.Namespace) -> int:
        if module.raises is not None:
            raise module.raises
        module.args = args
        return 0

    module.add_arguments, module.run = add_arguments, run
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(command_line, "COMMANDS", (("probe", "keep the arguments"), *COMMANDS))
    monkeypatch.chdir(tmp_path)
    return module


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr; stdout must be empty."""
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("tvm-mobilenet: error: ")
    assert captured.err.count("\n") == 1
    return captured.err.removeprefix("tvm-mobilenet: error: ").rstrip("\n")


@pytest.mark.parametrize("arguments", [[], *([name] for name, _ in COMMANDS)])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    program = (
        "import sys\n"
        "from tvm_mobilenet.cli import main\n"
        "try:\n"
        f"    main({[*arguments, '--help']})\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0, end.code\n"
        f"loaded = [name for name in {HEAVY} if name in sys.modules]\n"
        "assert not loaded, loaded\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(" ".join(["usage: tvm-mobilenet", *arguments]))


def test_top_level_help_imports_no_command() -> None:
    program = (
        "import sys\n"
        "from tvm_mobilenet.cli import COMMANDS, main\n"
        "try:\n"
        "    main(['--help'])\n"
        "except SystemExit:\n"
        "    print([n for n, _ in COMMANDS if f'tvm_mobilenet.cli.{n}' in sys.modules])\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "[]"
    assert all(f"    {name} " in result.stdout for name, _ in COMMANDS)


def test_version(cli) -> None:
    from importlib.metadata import version

    result = cli("--version")
    assert (result.returncode, result.stdout) == (0, f"tvm-mobilenet {version('tvm-mobilenet')}\n")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.UsageError("two\n lines"), 2),
        (errors.InputError("two\n lines"), 3),
        (errors.MissingToolError("two\n lines"), 4),
        (errors.ParityError("two\n lines"), 5),
        (errors.NothingMeasuredError("two\n lines"), 6),
        (KeyboardInterrupt(), 130),
        (ZeroDivisionError("division by zero"), 1),
        (ModuleNotFoundError("No module named 'torch'", name="torch.onnx"), 4),
        (ModuleNotFoundError("No module named", name="tvm_mobilenet.gone"), 1),
        (BrokenPipeError("a socket's, not stdout's"), 1),
    ],
)
def test_error_is_one_line_and_an_exit_code(probe, capsys, error, code) -> None:
    probe.raises = error
    assert main(["probe", "-o", "out"]) == code
    line = error_line(capsys)
    if isinstance(error, errors.TvmMobilenetError):
        assert line == "two lines"
    elif isinstance(error, ModuleNotFoundError) and code == 4:
        assert "'torch'" in line and "doctor" in line
    elif code == 1:
        assert type(error).__name__ in line and "-vv" in line


def test_vv_adds_the_traceback(probe, capsys) -> None:
    probe.raises = ZeroDivisionError("division by zero")
    assert main(["probe", "-o", "out", "-vv"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "COMMAND"),
        (["biuld"], "'biuld'"),
        (["probe"], "--output"),
        (["probe", "-o", "x", "--threads", "0"], "--threads"),
        (["probe", "-o", "x", "--alpha", "wide"], "--alpha"),
        (["probe", "-o", "x", "--nonsense"], "--nonsense"),
    ],
)
def test_wrong_usage(probe, capsys, arguments, problem) -> None:
    assert main(arguments) == 2
    line = error_line(capsys)
    assert problem in line and "--help" in line


def test_options_reach_the_command(probe) -> None:
    assert main(["probe", "m.onnx", "-o", "out", "--alpha", "0.5", "--batch", "3", "-v"]) == 0
    assert model_options(probe.args) == {
        "alpha": 0.5,
        "resolution": 224,
        "batch": 3,
        "classes": 1000,
        "weights": None,
    }
    assert (probe.args.target, probe.args.threads, probe.args.verbose) == ("native", None, 1)
    assert probe.args.console.verbose == 1


def test_flag_beats_environment_beats_file(probe, monkeypatch) -> None:
    Path("pyproject.toml").write_text(
        '[project]\nname = "x"\n[tool.tvm-mobilenet]\ntarget = "file"\nthreads = 2\nalpha = 0.5\n'
        '[tool.tvm-mobilenet.probe]\noutput = "own"\nalpha = 0.25\njson = true\n'
        'against = ["torch", "onnxruntime"]\n'
    )
    monkeypatch.setenv("TVM_MOBILENET_TARGET", "environment")
    monkeypatch.setenv("TVM_MOBILENET_THREADS", "3")
    assert main(["probe", "--threads", "4"]) == 0
    args = probe.args
    assert (args.threads, args.target) == (4, "environment")
    assert (args.output, args.alpha, args.json) == ("own", 0.25, True)
    assert args.against == ["torch", "onnxruntime"]


def test_an_option_of_another_command_is_no_error(probe) -> None:
    Path("pyproject.toml").write_text('[tool.tvm-mobilenet]\ntarget = "x86-64-v3"\n')
    assert main(["targets", "--json"]) == 0


@pytest.mark.parametrize("place", ["before", "after", "environment"])
def test_config_file_replaces_pyproject(probe, monkeypatch, place) -> None:
    Path("pyproject.toml").write_text('[tool.tvm-mobilenet]\ntarget = "wrong"\nthreads = 7\n')
    Path("own.toml").write_text('target = "right"\n')
    config = [] if place == "environment" else ["--config", "own.toml"]
    if place == "environment":
        monkeypatch.setenv("TVM_MOBILENET_CONFIG", "own.toml")
    command = ["probe", "-o", "out"]
    assert main([*config, *command] if place == "before" else [*command, *config]) == 0
    assert (probe.args.target, probe.args.threads) == ("right", None)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('[project]\ntraget = 1\n[tool.tvm-mobilenet]\ntraget = "x"\n', "pyproject.toml:4: traget"),
        ("[tool.tvm-mobilenet.probe]\n\nlogs = 1\n", "pyproject.toml:3: logs"),
        ("[tool.tvm-mobilenet]\nthreads = 0\n", "pyproject.toml:2: threads"),
        ("[tool.tvm-mobilenet]\nalpha = []\n", "pyproject.toml:2: alpha"),
        ('[tool.tvm-mobilenet.probe]\njson = "perhaps"\n', "pyproject.toml:2: json"),
        ('[tool.tvm-mobilenet.probe]\nagainst = ["tflite"]\n', "pyproject.toml:2: against"),
        ("[tool.tvm-mobilenet]\nprobe = 1\n", "pyproject.toml:2: probe"),
        ("[tool]\ntvm-mobilenet = 1\n", "pyproject.toml:2: tvm-mobilenet"),
        ("[tool.tvm-mobilenet]\nthreads =\n", "pyproject.toml:2: not valid TOML"),
    ],
)
def test_bad_configuration_names_file_line_and_key(probe, capsys, text, problem) -> None:
    Path("pyproject.toml").write_text(text)
    assert main(["probe", "-o", "out"]) == 3
    assert error_line(capsys).startswith(problem)


@pytest.mark.parametrize(
    ("config", "text", "problem"),
    [
        ("gone.toml", None, "gone.toml: cannot be read: No such file"),
        ("a.toml", "[tool.ruff]\n", "[tool.tvm-mobilenet]"),
    ],
)
def test_bad_config_file(probe, capsys, config, text, problem) -> None:
    if text is not None:
        Path(config).write_text(text)
    assert main(["probe", "-o", "out", "--config", config]) == 3
    assert problem in error_line(capsys)


def test_bad_environment_names_the_variable(probe, capsys, monkeypatch) -> None:
    monkeypatch.setenv("TVM_MOBILENET_THREADS", "many")
    assert main(["probe", "-o", "out"]) == 3
    assert error_line(capsys).startswith("TVM_MOBILENET_THREADS: 'many'")


def test_bad_configuration_leaves_help_alone(probe) -> None:
    Path("pyproject.toml").write_text("[tool.tvm-mobilenet]\nthreads =\n")
    with pytest.raises(SystemExit) as end:
        main(["probe", "--help"])
    assert end.value.code == 0


def test_reader_that_goes_away_is_no_error() -> None:
    command = [sys.executable, "-m", "tvm_mobilenet", "targets", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_emit_json_writes_plain_values(capsys) -> None:
    @dataclasses.dataclass(frozen=True)
    class Row:
        path: Path
        values: tuple[float, ...]

    emit_json("test", {"rows": [Row(Path("a/b"), (1.5, math.inf))], "n": np.float32(2)})
    assert json.loads(capsys.readouterr().out) == {
        "schema_version": 1,
        "kind": "test",
        "rows": [{"path": "a/b", "values": [1.5, None]}],
        "n": 2.0,
    }


def test_print_table_aligns_numbers_to_the_right(capsys) -> None:
    print_table(("NAME", "MS"), [("pointwise", 10), ("dense", 9)])
    assert capsys.readouterr().out == "NAME       MS\npointwise  10\ndense       9\n"


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("no_colour", [False, True])
def test_console_on_a_terminal(monkeypatch, no_colour) -> None:
    monkeypatch.setenv("NO_COLOR", "1" if no_colour else "")
    stream = _Terminal()
    console = Console(stream=stream)
    console.progress(1, 2, "tiles")
    console.warn("slow")
    console.detail("only with -v")
    text = stream.getvalue()
    assert "1/2 tiles" in text and text.endswith("slow\n") and "only" not in text
    assert ("\x1b[33m" in text) is not no_colour


def test_console_without_a_terminal_shows_no_bar() -> None:
    stream = io.StringIO()
    console = Console(1, stream)
    console.progress(1, 2, "tiles")
    console.info("compiling")
    console.detail("phase 1")
    assert stream.getvalue() == "compiling\nphase 1\n"

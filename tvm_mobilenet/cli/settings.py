"""Option values from outside the command line: environment, then the configuration file.

A flag wins over the environment, the environment over the file. A key of the file is the long
option's name (`target = "x86-64-v3"`); a sub-table named after a command holds values for that
command alone and wins over the top level.
"""

from __future__ import annotations

import argparse
import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tvm_mobilenet import cli
from tvm_mobilenet.errors import InputError
from tvm_mobilenet.toml_file import TomlFile, read_toml

ENVIRONMENT_PREFIX = "TVM_MOBILENET_"
_COMMON = {"help", "verbose", "config"}


def apply_settings(parser: argparse.ArgumentParser, command: str, config: str | None) -> None:
    """Make the environment's and the configuration's values the parser's defaults.

    Raises InputError for an unknown key or a value that the option does not take.
    """
    options = _options(parser)
    for key, (value, origin) in _configured(command, config, options).items():
        _set_default(options[key], value, origin)
    for key, action in options.items():
        variable = ENVIRONMENT_PREFIX + key.upper().replace("-", "_")
        if variable in os.environ:
            _set_default(action, os.environ[variable], InputError(variable))


def _options(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """The parser's long options by name, those of every command left out."""
    return {
        option.removeprefix("--"): action
        for action in parser._actions
        for option in action.option_strings
        if option.startswith("--") and option.removeprefix("--") not in _COMMON
    }


def _configured(
    command: str, config: str | None, options: Mapping[str, argparse.Action]
) -> dict[str, tuple[Any, InputError]]:
    """What the file sets for this command: option name to (value, error naming file and line)."""
    found = _settings_table(config)
    if found is None:
        return {}
    file, path, table = found
    names = {name for name, _ in cli.COMMANDS}
    own = table.get(command, {})
    if not isinstance(own, dict):
        raise file.error(command, "must be a table of option values", path)
    values = {}
    for key in [key for key in table if key not in names]:
        if key in options:
            values[key] = table[key], file.error(key, "", path)
        elif key not in _every_option():
            raise file.error(key, "no command has such an option", path)
    own_path = f"{path}.{command}" if path else command
    for key, value in own.items():
        if key not in options:
            raise file.error(key, f"'{command}' has no such option", own_path)
        values[key] = value, file.error(key, "", own_path)
    return values


def _settings_table(config: str | None) -> tuple[TomlFile, str, dict[str, Any]] | None:
    """File, table name and table: of --config FILE, else of ./pyproject.toml where it has one.

    A --config FILE without a [tool] table holds the options at its top level.
    """
    if config is None and not Path("pyproject.toml").is_file():
        return None
    file = read_toml(Path(config or "pyproject.toml"))
    if config is not None and "tool" not in file.table:
        return file, "", file.table
    tools = file.table.get("tool")
    table = tools.get("tvm-mobilenet") if isinstance(tools, dict) else None
    if isinstance(table, dict):
        return file, "tool.tvm-mobilenet", table
    if config is not None or table is not None:
        raise file.error("tvm-mobilenet", "the file has no [tool.tvm-mobilenet] table", "tool")
    return None


@functools.cache
def _every_option() -> set[str]:
    """The long options of all commands; imports every command's file."""
    every: set[str] = set()
    for name, _ in cli.COMMANDS:
        parser = argparse.ArgumentParser(add_help=False)
        cli.load_command(name).add_arguments(parser)
        every |= _options(parser).keys()
    return every


def _set_default(action: argparse.Action, value: Any, origin: InputError) -> None:
    where = str(origin).removesuffix(": ")
    if action.nargs == 0:
        action.default = _switch(value, where)
    elif isinstance(value, list):
        if action.nargs not in ("*", "+") and not isinstance(action, argparse._AppendAction):
            raise InputError(f"{where}: takes one value, not a list")
        action.default = [_convert(action, item, where) for item in value]
    else:
        action.default = _convert(action, value, where)
    action.required = False


def _switch(value: Any, where: str) -> bool:
    """A flag without a value, as true or false."""
    word = str(value).lower()
    if word in ("1", "true", "yes"):
        return True
    if word in ("0", "false", "no", ""):
        return False
    raise InputError(f"{where}: {value!r} is neither true nor false")


def _convert(action: argparse.Action, value: Any, where: str) -> Any:
    """The value as the option's own type and choices take it from the command line."""
    convert: Any = action.type or str
    try:
        converted = convert(str(value))
    except (argparse.ArgumentTypeError, TypeError, ValueError) as error:
        reason = str(error) if isinstance(error, argparse.ArgumentTypeError) else "invalid value"
        raise InputError(f"{where}: {value!r}: {reason}") from error
    if action.choices is not None and converted not in action.choices:
        raise InputError(f"{where}: {value!r} is not one of {', '.join(map(str, action.choices))}")
    return converted

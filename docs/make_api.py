"""Writes docs/api.md, the reference of the Python API, from signatures and docstrings.

python docs/make_api.py            # `make docs`; a test says when it is to be run again
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent / "api.md"
HEAD = """# Python API

Written by `python docs/make_api.py` from the code; change the docstrings, not this page. The verbs
are those of the command line, with the same names and options.
"""


def page() -> str:
    """The whole page."""
    import tvm_mobilenet.runtime as runtime
    from tvm_mobilenet import api, errors

    parts = [HEAD, "## `tvm_mobilenet`", "", "`import tvm_mobilenet as tm`", ""]
    for name in sorted(set(api.__all__) - {"Bundle"}):
        parts += function(f"tm.{name}", getattr(api, name))
    parts += ["## `tvm_mobilenet.runtime`", "", docstring(runtime)]
    for name in runtime.__all__:
        parts += class_(name, getattr(runtime, name))
    parts += ["## `tvm_mobilenet.errors`", "", docstring(errors)]
    for name, kind in vars(errors).items():
        if inspect.isclass(kind) and kind.__module__ == errors.__name__:
            parts += [f"### `{name}`", "", docstring(kind)]
    return "\n".join(parts).rstrip() + "\n"


def function(name: str, value: Any, level: int = 3) -> list[str]:
    """A function's heading, signature and docstring."""
    return [
        f"{'#' * level} `{name}`",
        "",
        f"```python\n{signature(name, value)}\n```",
        "",
        docstring(value),
    ]


def class_(name: str, kind: type) -> list[str]:
    """A class with the public functions and properties that it defines itself."""
    parts = [f"### `{name}`", "", docstring(kind)]
    for member, value in vars(kind).items():
        if member.startswith("_"):
            continue
        if isinstance(value, property):
            parts += [f"#### `{name}.{member}`", "", docstring(value)]
        elif inspect.isfunction(value) or isinstance(value, classmethod):
            parts += function(f"{name}.{member}", getattr(kind, member), 4)
    return parts


def signature(name: str, value: Any) -> str:
    """The signature, one parameter a line where it is long."""
    found = inspect.signature(value)
    text = f"{name}{found}"
    if len(text) > 100:
        parameters = [str(parameter) for parameter in found.parameters.values()]
        named = [p.kind is p.KEYWORD_ONLY for p in found.parameters.values()]
        if any(named):
            parameters.insert(named.index(True), "*")
        tail = text[len(name) + len(str(found.replace(return_annotation=found.empty))) :]
        text = f"{name}(\n" + "".join(f"    {each},\n" for each in parameters) + f"){tail}"
    return re.sub(r"(: |-> )'([^']*)'", r"\1\2", text)  # annotations are kept as text


def docstring(value: Any) -> str:
    """The docstring; SystemExit where there is none."""
    text = inspect.getdoc(value)
    if not text:
        raise SystemExit(f"{value!r} has no docstring")
    return text + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

"""`tvm-mobilenet bundle`: inspect, verify, diff and merge bundles, without running their code."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_mobilenet.cli.common import add_json, emit_json, print_table
from tvm_mobilenet.errors import UsageError

if TYPE_CHECKING:
    from tvm_mobilenet.runtime import Manifest

HELP = (
    "Look into bundles, without running their code. inspect BUNDLE: model, target, inputs, parity, "
    "versions, operators by source of schedule, files; verify BUNDLE: compare every file with its "
    "SHA-256 (exit code 3 when one differs); diff A B: where manifests and files differ; merge "
    "BUNDLE... -o OUT: one bundle for several targets, of which the loader picks what suits the "
    "machine. Hashes find damage, not malice: loading a bundle runs its code, so load only bundles "
    "that you trust."
)
_SHOWN = 60  # characters of a value in diff's table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """bundle inspect BUNDLE | verify BUNDLE | diff A B | merge BUNDLE... -o OUT"""
    parser.add_argument("action", choices=("inspect", "verify", "diff", "merge"), help="what to do")
    parser.add_argument("bundles", nargs="+", metavar="BUNDLE", type=Path, help="directories")
    parser.add_argument("-o", "--output", type=Path, metavar="OUT", help="merge: where to write")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print what was found or done."""
    wanted = {"inspect": 1, "verify": 1, "diff": 2}.get(args.action)
    if wanted is not None and len(args.bundles) != wanted:
        raise UsageError(f"'bundle {args.action}' takes {wanted} BUNDLE, not {len(args.bundles)}")
    if (args.action == "merge") != (args.output is not None):
        raise UsageError("'bundle merge' needs -o OUT, and nothing else takes it")
    actions = {"inspect": _inspect, "verify": _verify, "diff": _diff, "merge": _merge}
    return actions[args.action](args)


def _inspect(args: argparse.Namespace) -> int:
    from tvm_mobilenet.runtime import manifest

    (path,) = args.bundles
    document = manifest.read_document(path)
    if args.json:
        emit_json("bundle", {"path": str(path), "manifest": document})
        return 0
    places = [path / variant.path for variant in manifest.variants(path)]
    if places:
        rows = [
            (variant.path, variant.target, variant.architecture, len(variant.cpu_features))
            for variant in manifest.variants(path)
        ]
        print_table(("VARIANT", "TARGET", "ARCHITECTURE", "CPU FEATURES"), rows)
    else:
        _describe(manifest.read(path))
    return 0


def _describe(contents: Manifest) -> None:
    document = contents.document
    sources = Counter(operator["source"] for operator in document["operators"])
    size = sum(file.size for file in contents.files.values())
    batches = ", ".join(map(str, contents.batches))
    own = "each with kernels of its own" if contents.entries else "run in parts"
    facts = {
        "model": document["model"]["name"],
        "target": document["target"]["name"],
        "schema": str(document["schema_version"]),
        "precision": contents.precision,
        **{
            f"{kind} {tensor.name}": f"{tensor.dtype} {'x'.join(map(str, tensor.shape))}"
            for kind, tensors in (("input", contents.inputs), ("output", contents.outputs))
            for tensor in tensors
        },
        "other batches": f"{batches} ({own})" if batches else "none",
        "threads": str(contents.threads or "one for each core"),
        "parity": document["parity"]["state"],
        "operators": ", ".join(f"{count} {source}" for source, count in sorted(sources.items())),
        "tools": ", ".join(f"{name} {version}" for name, version in document["tools"].items()),
        "size": f"{size / 1e6:.1f} MB in {len(contents.files)} files",
    }
    width = max(map(len, facts))
    sys.stdout.write("".join(f"{key.ljust(width)}  {value}\n" for key, value in facts.items()))
    rows = [(name, file.size, file.sha256[:16]) for name, file in contents.files.items()]
    sys.stdout.write("\n")
    print_table(("FILE", "BYTES", "SHA-256 BEGINS"), rows)


def _verify(args: argparse.Namespace) -> int:
    from tvm_mobilenet.deploy import inspect

    (path,) = args.bundles
    found = inspect.verify(path)
    foreign = inspect.foreign_files(path)
    for name in foreign:
        args.console.warn(f"{path / name} is not the bundle's")
    files = sum(len(contents.files) for contents in found)
    targets = [contents.document["target"]["name"] for contents in found]
    if args.json:
        emit_json(
            "bundle-verify",
            {"path": str(path), "files": files, "targets": targets, "foreign": foreign},
        )
    else:
        sys.stdout.write(f"{path}: {files} files are as they were built, {', '.join(targets)}\n")
    return 0


def _diff(args: argparse.Namespace) -> int:
    from tvm_mobilenet.deploy import inspect

    first, second = args.bundles
    found = inspect.diff(first, second)
    if args.json:
        rows = [{"what": d.what, "first": d.first, "second": d.second} for d in found]
        emit_json("bundle-diff", {"same": not found, "differences": rows})
    elif found:
        print_table(
            ("WHAT", "FIRST", "SECOND"),
            [(d.what, _shown(d.first), _shown(d.second)) for d in found],
        )
    else:
        sys.stdout.write("the same\n")
    return 0


def _shown(value: Any) -> str:
    text = "-" if value is None else str(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _merge(args: argparse.Namespace) -> int:
    from tvm_mobilenet.deploy.variants import merge
    from tvm_mobilenet.runtime import manifest

    path = merge(args.bundles, args.output)
    names = [variant.target for variant in manifest.variants(path)]
    if args.json:
        emit_json("bundle-merge", {"path": str(args.output), "targets": names})
    else:
        sys.stdout.write(f"{args.output}: a bundle for {', '.join(names)}\n")
    return 0

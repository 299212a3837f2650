"""What a bundle holds, whether it is whole, and how two differ, without running their code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvm_mobilenet.runtime import manifest

_NOT_CONTENT = ("manifest_sha256", "files")  # of the manifest; files are compared by themselves


@dataclass(frozen=True)
class Difference:
    """One place where two bundles differ: a field of the manifest or a file; None: not there."""

    what: str
    first: Any
    second: Any


def verify(directory: Path) -> tuple[manifest.Manifest, ...]:
    """Compare every file of a bundle with its hash; the checked manifests, one for each target.

    Raises InputError naming what is missing or changed.
    """
    variants = manifest.variants(directory)
    for variant in variants:
        manifest.check_variant(directory, variant)
    places = [directory / variant.path for variant in variants] or [directory]
    read = tuple(map(manifest.read, places))
    for place, contents in zip(places, read, strict=True):
        manifest.check_files(place, contents)
    return read


def foreign_files(directory: Path) -> list[str]:
    """Files in a bundle's directory that its manifest does not list."""
    own = manifest.listed_files(directory) | {manifest.NAME}
    found = (file for file in sorted(directory.rglob("*")) if not file.is_dir())
    return [name for file in found if (name := file.relative_to(directory).as_posix()) not in own]


def diff(first: Path, second: Path) -> list[Difference]:
    """Where two bundles differ: fields of the manifests, dotted, and contents of files.

    Raises as `manifest.read`.
    """
    documents = [manifest.read_document(path) for path in (first, second)]
    fields = [dict(_flat(document)) for document in documents]
    files = [document["files"] for document in documents]
    found = [
        Difference(name, fields[0].get(name), fields[1].get(name))
        for name in sorted(fields[0].keys() | fields[1].keys())
        if fields[0].get(name) != fields[1].get(name)
    ]
    for name in sorted(files[0].keys() | files[1].keys()):
        one, other = (listed.get(name, {}).get("sha256") for listed in files)
        if one != other:
            found.append(Difference(f"file {name}", one, other))
    return found


def _flat(document: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Leaves of a manifest by dotted name."""
    stack: list[tuple[str, Any]] = [
        (key, value) for key, value in document.items() if key not in _NOT_CONTENT
    ]
    while stack:
        name, value = stack.pop()
        if isinstance(value, Mapping) and value:
            stack += [(f"{name}.{key}", each) for key, each in value.items()]
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            stack += [(f"{name}[{i}]", each) for i, each in enumerate(value)]
        else:
            yield name, value

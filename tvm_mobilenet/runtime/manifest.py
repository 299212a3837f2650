"""The bundle's manifest: its form, its seal, and the checks on reading. Standard library only."""

from __future__ import annotations

import hashlib
import json
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from tvm_mobilenet.errors import InputError
from tvm_mobilenet.runtime import host

NAME = "manifest.json"
FORMAT = "tvm-mobilenet bundle"
SCHEMA_VERSION = 3  # 2: `batches`, bundles for several targets; 3: `entries`, kernels a batch size
LIBRARY = "model.so"
SAMPLES = "samples.npz"
KERNELS = "kernels.zip"  # the source of every kernel, for people; nothing needs it to run

_BLANK = "0" * 64
_SEAL = re.compile(r'("manifest_sha256": ")([0-9a-f]{64})("\n\}\n)\Z')


@dataclass(frozen=True)
class Tensor:
    """One input or output: its name, shape and numpy dtype name."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class File:
    """What the manifest says of one file: SHA-256 in hexadecimal, size in bytes."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Manifest:
    """A checked manifest: the parts that running needs, and the whole as `document`.

    batches: other sizes of the first axis than the first compiled one that were proven.
    entries: the library's functions for those of them that have kernels of their own, by size.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    threads: int | None
    kind: str  # "llvm" or "cuda"
    architecture: str
    cpu_features: tuple[str, ...]
    files: Mapping[str, File]
    batches: tuple[int, ...]
    entries: Mapping[int, str]
    document: Mapping[str, Any]

    @property
    def precision(self) -> str:
        """What the network computes in; older releases had float32 only and do not say it."""
        return str(self.document["target"].get("precision", "float32"))


def seal(document: Mapping[str, Any]) -> str:
    """The manifest's text: JSON whose last key is the SHA-256 of the text with that key blank."""
    text = json.dumps({**document, "manifest_sha256": _BLANK}, indent=2, allow_nan=False) + "\n"
    return _SEAL.sub(rf"\g<1>{_digest(text.encode())}\g<3>", text)


def read(directory: Path) -> Manifest:
    """Read and check a bundle's manifest.

    Raises InputError when the directory is no bundle, or its manifest is damaged, of another
    schema version, or names files outside of the bundle.
    """
    path = directory / NAME
    document = read_document(directory)
    if "variants" in document:
        places = ", ".join(str(directory / variant.path) for variant in variants(directory))
        raise InputError(f"{directory}: is for several targets; give one of {places}")
    try:
        entries = {int(entry["batch"]): str(entry["name"]) for entry in document["entries"]}
        sizes = [*entries, *map(int, document["batches"])]
        if sizes and min(*sizes, *(int(entry["shape"][0]) for entry in document["inputs"])) < 1:
            raise ValueError("a batch size is less than 1")
        return Manifest(
            inputs=tuple(_tensor(entry) for entry in document["inputs"]),
            outputs=tuple(_tensor(entry) for entry in document["outputs"]),
            threads=None if document["threads"] is None else int(document["threads"]),
            kind=str(document["target"]["kind"]),
            architecture=str(document["target"]["architecture"]),
            cpu_features=tuple(map(str, document["target"]["cpu_features"])),
            files={
                _inside(str(name), path): File(str(entry["sha256"]), int(entry["size"]))
                for name, entry in document["files"].items()
            },
            batches=tuple(map(int, document["batches"])),
            entries=entries,
            document=document,
        )
    except (KeyError, IndexError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise InputError(f"{path}: not a valid manifest ({error!r}); build the bundle again") from (
            error
        )


@dataclass(frozen=True)
class Variant:
    """One of the bundles in a bundle for several targets. `path`: its directory there."""

    path: str
    target: str
    architecture: str
    cpu_features: tuple[str, ...]
    manifest_sha256: str


def variants(directory: Path) -> tuple[Variant, ...]:
    """What a bundle for several targets holds, best first; of any other bundle nothing.

    Raises as `read`.
    """
    path, document = directory / NAME, read_document(directory)
    try:
        return tuple(
            Variant(
                _inside(str(entry["path"]), path),
                str(entry["target"]),
                str(entry["architecture"]),
                tuple(map(str, entry["cpu_features"])),
                str(document["files"][f"{entry['path']}/{NAME}"]["sha256"]),
            )
            for entry in document.get("variants", ())
        )
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise InputError(f"{path}: not a valid manifest ({error!r}); build the bundle again") from (
            error
        )


def choose(directory: Path) -> Path:
    """The directory to load: itself, or in a bundle for several targets the best one for here.

    Raises as `read`; InputError when no variant can run here, or the chosen one was changed.
    """
    found = variants(directory)
    if not found:
        return directory
    reasons = []
    for variant in found:
        reason = host.why_not_here(variant.architecture, variant.cpu_features)
        if reason is not None:
            reasons.append(f"{variant.target}: {reason}")
            continue
        check_variant(directory, variant)
        if read(directory / variant.path).kind == "cuda":
            from tvm_mobilenet.runtime import cuda

            if (reason := cuda.why_not_here()) is not None:
                reasons.append(f"{variant.target}: {reason}")
                continue
        return directory / variant.path
    raise InputError(f"{directory}: has nothing for this machine ({'; '.join(reasons)})")


def check_variant(directory: Path, variant: Variant) -> None:
    """InputError when a variant's manifest is not as it was written; `read` checks its own seal."""
    place = directory / variant.path
    if place.is_symlink():
        raise InputError(f"{place}: is a link; a bundle holds plain files only")
    listing = place / NAME
    if not listing.is_file() or file_digest(listing) != variant.manifest_sha256:
        raise InputError(f"{listing}: differs from what was built; copy the bundle again")


def is_bundle(directory: Path) -> bool:
    """Whether the directory has a bundle's manifest, of whatever version and state."""
    try:
        document = json.loads((directory / NAME).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(document, dict) and document.get("format") == FORMAT


def listed_files(directory: Path) -> frozenset[str]:
    """The file names in the manifest of a directory for which `is_bundle` holds."""
    files = json.loads((directory / NAME).read_bytes()).get("files")
    return frozenset(map(str, files)) if isinstance(files, dict) else frozenset()


def check_files(directory: Path, manifest: Manifest, *, hashes: bool = True) -> None:
    """Compare the bundle's files with its manifest: kind, size and, with `hashes`, content.

    Raises InputError naming the first file that is missing, a link, or not as it was written.
    """
    for required in (LIBRARY, SAMPLES):
        if required not in manifest.files:
            raise InputError(
                f"{directory / NAME}: does not list {required}; build the bundle again"
            )
    for name, wanted in manifest.files.items():
        path = directory / name
        for part in (path, *path.parents[: len(PurePosixPath(name).parts) - 1]):
            if part.is_symlink():
                raise InputError(f"{part}: is a link; a bundle holds plain files only")
        try:
            status = path.stat()
        except OSError as error:
            raise InputError(
                f"{path}: missing or unreadable ({error.strerror}); build the bundle again"
            ) from error
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path}: not a plain file; build the bundle again")
        if status.st_size != wanted.size or (hashes and file_digest(path) != wanted.sha256):
            raise InputError(f"{path}: differs from what was built; build or copy the bundle again")


def file_digest(path: Path) -> str:
    """SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_document(directory: Path) -> Mapping[str, Any]:
    """The whole manifest, its seal checked and of this schema version; raises as `read`."""
    return _upgraded(_document(directory))


def _document(directory: Path) -> dict[str, Any]:
    path = directory / NAME
    if not directory.is_dir():
        state = "not a directory" if directory.exists() else "no such bundle"
        raise InputError(f"{directory}: {state}; 'tvm-mobilenet build -o {directory}' writes one")
    if not path.is_file() or path.is_symlink():
        raise InputError(f"{directory}: not a bundle, it has no {NAME}")
    try:
        text = path.read_bytes().decode()
        document = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read ({error}); build the bundle again") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise InputError(f"{path}: not the manifest of a tvm-mobilenet bundle")
    schema = document.get("schema_version")
    if schema not in range(1, SCHEMA_VERSION + 1) or isinstance(schema, bool):
        raise InputError(
            f"{path}: schema version {schema!r}, this release reads 1 to {SCHEMA_VERSION}; "
            "build the bundle again or update tvm-mobilenet"
        )
    found = _SEAL.search(text)
    if found is None or found[2] != _digest(_SEAL.sub(rf"\g<1>{_BLANK}\g<3>", text).encode()):
        raise InputError(f"{path}: differs from what was built; build or copy the bundle again")
    return document


def _upgraded(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """A manifest of an older schema as one of this; the document on the disk stays as it is."""
    if document["schema_version"] == SCHEMA_VERSION or "variants" in document:
        return document
    return {"batches": [], "entries": []} | dict(document)


def _tensor(entry: Mapping[str, Any]) -> Tensor:
    return Tensor(str(entry["name"]), tuple(int(n) for n in entry["shape"]), str(entry["dtype"]))


def _inside(name: str, manifest: Path) -> str:
    """The file's name, if it stays within the bundle."""
    parts = name.split("/")
    if any(c in name for c in "\\\0") or ":" in parts[0] or {"", ".", ".."} & set(parts):
        raise InputError(f"{manifest}: file name {name!r} leads out of the bundle")
    return name


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()

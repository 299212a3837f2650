"""Writing bundles: all or nothing, and never over what is no bundle."""

from __future__ import annotations

import errno
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tvm_mobilenet import frontend, targets
from tvm_mobilenet.deploy import bundle as writing
from tvm_mobilenet.deploy import check_output, write_bundle
from tvm_mobilenet.deploy.builder import Proven, compile_and_prove
from tvm_mobilenet.errors import InputError
from tvm_mobilenet.runtime import Bundle, manifest


@pytest.fixture(scope="module")
def proven(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Proven:
    imported = frontend.load_model(model_path)
    library = tmp_path_factory.mktemp("library") / manifest.LIBRARY
    return compile_and_prove(imported, targets.detect(), library, progress=lambda message: None)


def write(proven: Proven, output: Path) -> Path:
    return write_bundle(
        proven.compiled, proven.parity, proven.samples, output, library=proven.library
    )


def everything(directory: Path) -> dict[str, bytes]:
    """Names and contents of all that is in a directory."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() if path.is_file() else b"/"
        for path in directory.rglob("*")
    }


def test_it_makes_the_directories_above(proven: Proven, tmp_path: Path) -> None:
    Bundle.load(write(proven, tmp_path / "a/b/bundle")).close()


def test_it_links_the_library_itself_when_none_is_given(proven: Proven, tmp_path: Path) -> None:
    path = write_bundle(proven.compiled, proven.parity, proven.samples, tmp_path / "b")
    Bundle.load(path).close()


def test_an_empty_directory_is_filled(proven: Proven, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    Bundle.load(write(proven, tmp_path / "b")).close()


def test_a_link_is_followed(proven: Proven, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "here").symlink_to(tmp_path / "there")
    write(proven, tmp_path / "here")
    assert (tmp_path / "here").is_symlink()
    Bundle.load(tmp_path / "there").close()


@pytest.mark.parametrize("exchange", [True, False], ids=["exchanged", "renamed_twice"])
def test_an_older_bundle_is_replaced(
    proven: Proven, bundle_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    if not exchange:
        monkeypatch.setattr(writing, "_exchange", lambda first, second: False)
    old = bundle_path.stat().st_ino
    write(proven, bundle_path)
    assert bundle_path.stat().st_ino != old
    assert list(bundle_path.parent.iterdir()) == [bundle_path]
    Bundle.load(bundle_path).close()


def test_exchange_swaps_two_directories(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    if not writing._exchange(tmp_path / "one", tmp_path / "two"):
        pytest.skip("hardware: this file system cannot exchange two directories")
    assert (tmp_path / "one/two").exists()
    assert (tmp_path / "two/one").exists()


def test_a_damaged_bundle_may_be_replaced(proven: Proven, bundle_path: Path) -> None:
    (bundle_path / manifest.LIBRARY).write_bytes(b"")
    write(proven, bundle_path)
    Bundle.load(bundle_path).close()


def occupied(place: Path, what: str) -> None:
    if what == "file":
        place.write_text("precious")
        return
    place.mkdir()
    contents = {"photos": ("a.jpg", "x"), "other manifest": ("manifest.json", '{"name": "app"}')}
    name, text = contents.get(what, ("manifest.json", "not json"))
    (place / name).write_text(text)


@pytest.mark.parametrize("what", ["file", "photos", "other manifest", "broken manifest"])
def test_what_is_no_bundle_is_not_touched(proven: Proven, tmp_path: Path, what: str) -> None:
    occupied(tmp_path / "out", what)
    before = everything(tmp_path)
    with pytest.raises(InputError, match="exists and is not a bundle"):
        write(proven, tmp_path / "out")
    assert everything(tmp_path) == before


@pytest.mark.parametrize("name", ["notes.txt", "runner/build/runner", "link"])
def test_a_bundle_with_files_of_the_users_is_not_replaced(
    proven: Proven, bundle_path: Path, name: str
) -> None:
    file = bundle_path / name
    file.parent.mkdir(exist_ok=True, parents=True)
    if name == "link":
        file.symlink_to(bundle_path)
    else:
        file.write_text("mine")
    with pytest.raises(InputError, match=f"holds {name}, which is not the bundle's"):
        write(proven, bundle_path)
    assert file.exists()
    Bundle.load(bundle_path).close()


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="nothing can be written in"):
        check_output(tmp_path / "file" / "bundle")
    with pytest.raises(InputError, match="nothing can be written in"):
        check_output("/proc/self/bundle")


def failing(error: BaseException) -> Any:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize("step", ["save_samples", "_flush", "_move"])
@pytest.mark.parametrize(
    ("error", "expected", "words"),
    [
        (OSError(errno.ENOSPC, "full"), InputError, "no space left"),
        (OSError(errno.EACCES, "Permission denied"), InputError, "Permission denied"),
        (KeyboardInterrupt(), KeyboardInterrupt, ""),
    ],
    ids=["full", "denied", "interrupted"],
)
def test_a_failure_leaves_everything_as_it_was(
    proven: Proven,
    bundle_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    error: BaseException,
    expected: type[BaseException],
    words: str,
) -> None:
    monkeypatch.setattr(writing, step, failing(error))
    before = everything(bundle_path.parent)
    for output in (bundle_path, bundle_path.with_name("new"), bundle_path.parent / "deep/er/new"):
        with pytest.raises(expected, match=words or None):
            write(proven, output)
    assert everything(bundle_path.parent) == before


def test_the_old_bundle_comes_back_when_the_second_rename_fails(
    proven: Proven, bundle_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "_exchange", lambda first, second: False)
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if Path(target) == bundle_path and not self.name.endswith(".old"):
            raise OSError(errno.EIO, "disk error")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    before = everything(bundle_path.parent)
    with pytest.raises(InputError, match="disk error"):
        write(proven, bundle_path)
    assert everything(bundle_path.parent) == before


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 128 KiB."""
    place = tmp_path / "tiny"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("hardware: this user cannot mount a tmpfs")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_one_line_and_nothing_left_behind(proven: Proven, full_disk: Path) -> None:
    filler = full_disk / "filler"
    filler.write_bytes(bytes(100 * 1024))
    with pytest.raises(InputError, match=r"out: no space left on the device") as error:
        write(proven, full_disk / "out")
    assert "\n" not in str(error.value)
    assert list(full_disk.iterdir()) == [filler]


def test_a_full_temporary_directory_is_one_line_too(
    proven: Proven, full_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(full_disk))
    with pytest.raises(InputError, match="no space left on the device to link in") as error:
        write_bundle(proven.compiled, proven.parity, proven.samples, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()
    assert not list(full_disk.iterdir())

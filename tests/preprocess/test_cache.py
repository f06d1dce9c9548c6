import hashlib
import os
import resource
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from salus.core import Case, Image, Source
from salus.core.errors import ConfigError, ImageError, StorageError
from salus.preprocess import Preparation, PreparedCache
from salus.preprocess.cache import default_folder

RECIPE = Preparation(size=16, intensity="minmax", slices="all")


class Reader:
    """Reads the .npy files these tests make, and counts."""

    def __init__(self):
        self.read: list[Path] = []

    def __call__(self, images: Sequence[Source]) -> Image:
        path = images[0].path
        self.read.append(path)
        try:
            array = np.load(path)
        except (ValueError, OSError, EOFError) as error:
            raise ImageError(f"{path} is broken") from error
        return Image(array=array, unit="mm" if array.ndim == 3 else "px")


def digest(images: Sequence[Source]) -> str:
    """Of the bytes of the one file."""
    try:
        return hashlib.sha256(images[0].path.read_bytes()).hexdigest()
    except OSError as error:
        raise ImageError("gone") from error


def of(paths: Sequence[Path]) -> list[Case]:
    """A case a file."""
    return [Case(case_id=path.name, patient_id=path.name, images=(Source(path=path),)) for path in paths]


@pytest.fixture
def read():
    return Reader()


@pytest.fixture
def paths(tmp_path):
    """A picture, a volume of five slices, a broken file, a constant picture, another picture."""
    rng = np.random.default_rng(0)
    arrays = [rng.random((20, 20)), rng.random((20, 20, 5)), None, np.zeros((20, 20)), rng.random((12, 30))]
    made = []
    for index, array in enumerate(arrays):
        path = tmp_path / f"{index}.npy"
        path.write_bytes(b"text") if array is None else np.save(path, array.astype(np.float32))
        made.append(path)
    return made


@pytest.fixture
def cache(tmp_path):
    return PreparedCache(tmp_path / "cache")


def test_rows_are_what_the_preparation_makes_in_the_order_of_the_files(cache, paths, read):
    prepared = cache.prepare(of(paths), RECIPE, read, digest)
    assert prepared.rows.shape == (7, 1, 16, 16)
    assert prepared.rows.dtype == np.float32
    assert prepared.case.tolist() == [0, 1, 1, 1, 1, 1, 4]
    np.testing.assert_array_equal(prepared.rows[0, 0], RECIPE(read(of(paths)[0].images)).array)
    np.testing.assert_array_equal(prepared.rows[1:6, 0], np.moveaxis(RECIPE(read(of(paths)[1].images)).array, -1, 0))


def test_what_cannot_be_read_or_judged_is_listed_with_its_reason(cache, paths, read):
    for _ in range(2):  # made, then found
        failures = cache.prepare(of(paths), RECIPE, read, digest).failures
        assert [name for name, _ in failures] == ["2.npy", "3.npy"]
        assert "is broken" in failures[0][1]
        assert "constant" in failures[1][1]


def test_a_second_time_nothing_is_read(cache, paths, read):
    first = cache.prepare(of(paths), RECIPE, read, digest)
    read.read.clear()
    second = cache.prepare(of(paths), RECIPE, read, digest)
    assert not read.read
    np.testing.assert_array_equal(first.rows, second.rows)
    assert first.case.tolist() == second.case.tolist()


def test_rows_are_mapped_and_cannot_be_written_to(cache, paths, read):
    rows = cache.prepare(of(paths), RECIPE, read, digest).rows
    assert isinstance(rows, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        rows[0] = 0


def test_other_bytes_another_order_or_another_recipe_are_another_entry(cache, paths, read):
    cache.prepare(of(paths), RECIPE, read, digest)
    for change in (
        lambda: cache.prepare(of(paths[::-1]), RECIPE, read, digest),
        lambda: cache.prepare(of(paths), Preparation(size=16, intensity="minmax", slices="mid"), read, digest),
        lambda: (np.save(paths[0], np.eye(20, dtype=np.float32)), cache.prepare(of(paths), RECIPE, read, digest)),
    ):
        read.read.clear()
        change()
        assert len(read.read) == len(paths)


def test_a_copy_elsewhere_is_found(cache, paths, read, tmp_path):
    cache.prepare(of(paths), RECIPE, read, digest)
    read.read.clear()
    moved = [path.rename(tmp_path / f"moved-{path.name}") for path in paths]
    assert cache.prepare(of(moved), RECIPE, read, digest).failures[0][0] == moved[2].name
    assert not read.read


@pytest.mark.parametrize("damage", ["rows.f32", "index.json", "both"])
def test_a_damaged_entry_is_made_anew(cache, paths, read, damage):
    whole = np.array(cache.prepare(of(paths), RECIPE, read, digest).rows)
    (entry,) = cache.folder.iterdir()
    for name in ("rows.f32", "index.json"):
        if damage in (name, "both"):
            os.truncate(entry / name, 40)
    np.testing.assert_array_equal(cache.prepare(of(paths), RECIPE, read, digest).rows, whole)


def test_an_interrupted_preparation_is_not_used_and_leaves_nothing(cache, paths, read):
    def interrupted(images):
        if images[0].path == paths[4]:
            raise KeyboardInterrupt
        return read(images)

    with pytest.raises(KeyboardInterrupt):
        cache.prepare(of(paths), RECIPE, interrupted, digest)
    assert not list(cache.folder.iterdir())
    assert len(cache.prepare(of(paths), RECIPE, read, digest).rows) == 7


def test_what_a_killed_process_left_is_swept_after_a_day(cache, paths, read):
    for name, age in ((".building-old", 90_000), (".building-now", 60)):
        (cache.folder / name).mkdir(parents=True)
        os.utime(cache.folder / name, (time.time() - age,) * 2)
    cache.prepare(of(paths), RECIPE, read, digest)
    assert [path.name for path in cache.folder.glob(".*")] == [".building-now"]


def test_what_another_process_finished_meanwhile_is_used_and_stays_where_it_is(cache, paths, read):
    made = []

    def slow(images):
        if images[0].path == paths[0]:
            PreparedCache(cache.folder).prepare(of(paths), RECIPE, read, digest)
            made.extend(entry.stat().st_ino for entry in cache.folder.iterdir() if entry.name[0] != ".")
        return read(images)

    assert len(cache.prepare(of(paths), RECIPE, slow, digest).rows) == 7
    assert [entry.stat().st_ino for entry in cache.folder.iterdir()] == made, "the other one may be opening it"


def test_files_that_are_not_there_and_no_files_at_all_give_no_rows(cache, read, tmp_path):
    gone = cache.prepare(of([tmp_path / "gone.npy"]), RECIPE, read, digest)
    assert gone.rows.shape == (0, 1, 16, 16)
    assert len(gone.failures) == 1
    assert cache.prepare(of([]), RECIPE, read, digest).rows.shape == (0, 1, 16, 16)


def test_progress_counts_cases(cache, paths, read):
    seen = []
    cache.prepare(of(paths), RECIPE, read, digest, lambda done, of: seen.append((done, of)))
    cache.prepare(of(paths), RECIPE, read, digest, lambda done, of: seen.append((done, of)))
    assert seen == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5), (5, 5)]


def test_an_undecided_recipe_is_refused(cache, paths, read):
    with pytest.raises(ConfigError, match="call preparation"):
        cache.prepare(of(paths), Preparation(), read, digest)


def test_the_folder_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("SALUS_CACHE", str(tmp_path / "here"))
    assert default_folder() == PreparedCache().folder == tmp_path / "here"
    monkeypatch.delenv("SALUS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "salus" / "prepared"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder() == tmp_path / ".cache" / "salus" / "prepared"


LARGE = Preparation(size=512, intensity="minmax", slices="all")  # a megabyte a row


@pytest.fixture
def full_disk(tmp_path):
    """A file system of one megabyte, where this process may mount one."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder], capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs is not permitted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_said_and_left_clean(full_disk, paths, read):
    with pytest.raises(StorageError, match=r"^disk full: .*small .*set SALUS_CACHE"):
        PreparedCache(full_disk).prepare(of(paths), LARGE, read, digest)
    assert not list(full_disk.iterdir())


def test_a_file_larger_than_the_process_may_write_counts_as_a_full_disk(cache, paths, read):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # else the kernel kills instead of refusing
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, before[1]))
    try:
        with pytest.raises(StorageError, match="disk full"):
            cache.prepare(of(paths), LARGE, read, digest)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert not list(cache.folder.iterdir())


def test_a_place_that_cannot_be_written_is_a_storage_error(paths, read, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="the cache cannot be written"):
        PreparedCache(tmp_path / "file").prepare(of(paths), RECIPE, read, digest)

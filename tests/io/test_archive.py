import stat
import zipfile

import pytest

from salus.core.errors import LayoutError, StorageError
from salus.io import archive
from salus.io.archive import unpack


@pytest.fixture
def make(tmp_path):
    def made(**files):
        path = tmp_path / "a.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for name, content in files.items():
                file.writestr(name, content)
        return path

    return made


def test_files_come_out_with_their_folders(make, tmp_path):
    there = unpack(make(**{"p1/a.dcm": b"one", "b.dcm": b"two"}), tmp_path / "there")
    assert {str(p.relative_to(there)): p.read_bytes() for p in there.rglob("*.dcm")} == {
        "p1/a.dcm": b"one",
        "b.dcm": b"two",
    }


@pytest.mark.parametrize("name", ["../up.dcm", "p/../../up.dcm", "/etc/up.dcm", "..\\up.dcm", "C:/up.dcm", "."])
def test_what_climbs_out_of_the_archive_is_refused_and_nothing_is_written(make, tmp_path, name):
    with pytest.raises(LayoutError, match=r"which lies outside of it\. Nothing was unpacked"):
        unpack(make(**{"a.dcm": b"one", name: b"two"}), tmp_path / "there")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zip"]


def test_folders_may_be_written_as_windows_does(make, tmp_path):
    assert (unpack(make(**{"p1\\a.dcm": b"one"}), tmp_path / "there") / "p1/a.dcm").read_bytes() == b"one"


def test_a_link_is_refused(make, tmp_path):
    path = make(**{"a.dcm": b"one"})
    with zipfile.ZipFile(path, "a") as file:
        link = zipfile.ZipInfo("link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        file.writestr(link, "/etc/passwd")
    with pytest.raises(LayoutError, match="'link', a link"):
        unpack(path, tmp_path / "there")


@pytest.mark.parametrize("again", ["p1/a.dcm", "p1\\a.dcm", "p1/./a.dcm"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_is_there_twice_is_refused(make, tmp_path, again):
    path = make(**{"p1/a.dcm": b"one"})
    with zipfile.ZipFile(path, "a") as file:
        file.writestr(again, b"two")
    with pytest.raises(LayoutError, match=r"'p1/a\.dcm' twice: one would replace the other\. Nothing was unpacked"):
        unpack(path, tmp_path / "there")
    assert not (tmp_path / "there").exists()


def test_a_bomb_is_refused_from_its_table_of_contents(make, tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "FEW", 10_000)
    with pytest.raises(LayoutError, match=r"claims 1 files of 1,000,000 bytes: more than images shrink"):
        unpack(make(**{"zeros.dcm": bytes(1_000_000)}), tmp_path / "there")
    assert not (tmp_path / "there").exists()
    unpack(make(**{"zeros.dcm": bytes(9_000)}), tmp_path / "there")  # as much as may always be


def test_more_than_there_is_room_for_is_refused(make, tmp_path, monkeypatch):
    usage = type("usage", (), {"free": 100})
    monkeypatch.setattr(archive.shutil, "disk_usage", lambda place: usage)
    with pytest.raises(StorageError, match="there is room for 100"):
        unpack(make(**{"a.dcm": bytes(101)}), tmp_path / "there")


def test_what_is_no_zip_or_half_of_one_is_refused(make, tmp_path):
    whole = make(**{"a.dcm": bytes(range(256)) * 100}).read_bytes()
    (tmp_path / "half.zip").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "bad.zip").write_bytes(whole[:60] + b"????" + whole[64:])
    (tmp_path / "text.zip").write_text("no archive")
    for name in ("half.zip", "bad.zip", "text.zip"):
        with pytest.raises(LayoutError, match=f"{name} cannot be unpacked"):
            unpack(tmp_path / name, tmp_path / f"{name} there")

import csv
import json

import numpy as np
import pytest
from PIL import Image as Picture

from salus.core import Image, Label, Split
from salus.core.errors import LayoutError
from salus.datasets import open_dataset
from salus.datasets.painted import held_out, painted, write_painted
from salus.datasets.protocol import split
from salus.io import read_image, read_study, write_image
from tests.conftest import discs
from tests.datasets.layouts import png

PEOPLE = 30


@pytest.fixture
def healthy(tmp_path):
    """Discs to learn from, and a test with findings that must stay shut."""
    root = tmp_path / "healthy"
    for number, picture in enumerate(discs(PEOPLE)[:, 0]):
        png(root / "train/good" / f"{number:02d}.png", 0.7 * picture)
    for number, picture in enumerate(discs(4, hole=True)[:, 0]):
        png(root / "test/hole" / f"{number}.png", picture)
    return root


def rows(root):
    with (root / "metadata.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_held_out_people_are_the_test_bare_and_painted_and_nobody_else(healthy, tmp_path):
    root = write_painted(tmp_path / "painted", healthy)
    found = painted(root)
    parts = split(open_dataset("folder", healthy))
    held = {case.patient_id for case in held_out(parts)}
    learned = {case.patient_id for case in parts if case.split == Split.TRAIN}
    assert {case.patient_id for case in found if case.split == Split.NONE} == learned
    assert {case.patient_id for case in found if case.split == Split.TEST} == held
    assert {case.case_id for case in found if case.split == Split.TEST and case.label == Label.NORMAL} == {
        case.case_id for case in held_out(parts)
    }
    lesions = [case for case in found if case.label == Label.ABNORMAL]
    assert len(lesions) == len(rows(root)) > len(held)
    assert {finding.name for case in lesions for finding in case.findings} == {"bright", "dark"}
    assert not any("hole" in case.case_id for case in found)
    assert set(lesions[0].groups) == {"place", "diameter", "contrast"}
    assert split(found), "what is learned from can be divided once more"


def test_a_lesion_changes_its_pixels_and_those_it_fades_over_and_no_other(healthy, tmp_path):
    root = write_painted(tmp_path / "painted", healthy)
    source = {case.case_id: case for case in open_dataset("folder", healthy)}
    for row, case in zip(rows(root), [c for c in painted(root) if c.label == Label.ABNORMAL], strict=False):
        bare = read_study(source[row["of"]].images).array
        image = read_image(root / row["file"]).array
        finding, name = row["file"].split("/")[1:]
        mask = np.asarray(Picture.open(root / "ground_truth" / finding / name.replace(".png", "_mask.png"))) > 0
        added = image - bare
        assert mask.any()
        assert (added[mask] * float(row["contrast"]) >= 0).all()
        assert np.abs(added[mask]).mean() > np.abs(added[~mask]).mean()
        assert (added == 0).mean() > 0.3
        assert np.pi * float(row["diameter"]) ** 2 / 4 == pytest.approx(mask.sum(), rel=0.1, abs=2)
        assert case.label == Label.ABNORMAL


def test_the_same_seed_paints_the_same_and_another_one_does_not(healthy, tmp_path):
    first, again = (write_painted(tmp_path / name, healthy) for name in ("a", "b"))
    for file in sorted(path.relative_to(first) for path in first.rglob("*.png")):
        assert (first / file).read_bytes() == (again / file).read_bytes()
    assert rows(first) == rows(again) != rows(write_painted(tmp_path / "c", healthy, seed=1))
    stamps = {path: path.stat().st_mtime_ns for path in first.rglob("*")}
    assert write_painted(first, healthy) == first
    assert stamps == {path: path.stat().st_mtime_ns for path in first.rglob("*")}
    with pytest.raises(LayoutError, match=r"painted: .* is not the data set asked for"):
        write_painted(first, healthy, seed=1)


@pytest.mark.parametrize(("suffix", "unit", "depth"), [(".nii.gz", "mm", 0), (".tif", "px", 0)])
def test_untouched_values_are_kept_in_images_of_every_kind(tmp_path, suffix, unit, depth):
    affine = np.diag([0.7, 0.7, 3.0, 1.0])
    for number, picture in enumerate(discs(PEOPLE)[:, 0]):
        array = (1000 * picture - 17).astype(np.float32)
        image = Image(array=array, affine=affine if unit == "mm" else np.eye(4), unit=unit, depth=depth)
        (tmp_path / "healthy").mkdir(exist_ok=True)
        write_image(image, tmp_path / "healthy" / f"{number:02d}{suffix}")
    root = write_painted(tmp_path / "painted", tmp_path / "healthy")
    source = {case.case_id: case for case in open_dataset("folder", tmp_path / "healthy")}
    for row in rows(root):
        bare, image = read_study(source[row["of"]].images), read_image(root / row["file"])
        assert row["file"].endswith(suffix)
        assert image.unit == unit
        np.testing.assert_allclose(image.affine, bare.affine, atol=1e-5)
        assert (image.array == bare.array).mean() > 0.3
    case = next(case for case in painted(root) if case.label == Label.ABNORMAL)
    assert case.findings[0].mask is not None


def test_who_is_healthy_may_not_change_under_the_lesions(healthy, tmp_path):
    root = write_painted(tmp_path / "painted", healthy)
    for number, picture in enumerate(discs(40, seed=5)[:, 0]):
        png(healthy / "train/good" / f"new{number:02d}.png", picture)
    with pytest.raises(LayoutError, match="has other healthy people than when lesions were painted"):
        painted(root)


def test_what_cannot_be_painted_on_is_left_bare_and_volumes_are_refused(healthy, tmp_path):
    held = held_out(split(open_dataset("folder", healthy)))
    held[0].images[0].path.write_bytes(b"no picture")
    assert held[0].case_id not in {row["of"] for row in rows(write_painted(tmp_path / "a", healthy))}
    for case in held:
        case.images[0].path.write_bytes(b"no picture")
    with pytest.raises(LayoutError, match=f"none of {len(held)} held-out healthy images has room for lesions"):
        write_painted(tmp_path / "b", healthy)
    assert not (tmp_path / "b").exists()
    (tmp_path / "volumes").mkdir()
    for number in range(5):
        volume = Image(
            array=np.random.default_rng(number).random((16, 16, 8), dtype=np.float32), unit="mm", affine=np.eye(4)
        )
        write_image(volume, tmp_path / "volumes" / f"{number}.nii.gz")
    with pytest.raises(LayoutError, match="is a volume; lesions are painted on pictures"):
        write_painted(tmp_path / "c", tmp_path / "volumes")


def test_a_folder_that_was_not_painted_and_a_source_that_is_gone_are_told(healthy, tmp_path):
    with pytest.raises(LayoutError, match=r"holds no painted lesions: painted\.json cannot be read"):
        painted(healthy)
    root = write_painted(tmp_path / "painted", healthy)
    about = json.loads((root / "painted.json").read_text())
    (root / "painted.json").write_text(json.dumps({**about, "source": str(tmp_path / "gone")}))
    with pytest.raises(LayoutError, match="gone is not a folder"):
        painted(root)

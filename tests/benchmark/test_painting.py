import csv
import json

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from salus.benchmark.painting import write_painted
from salus.core import Image, Label, Split
from salus.core.errors import ConfigError, LayoutError
from salus.datasets import open_dataset
from salus.datasets.painted import held_out, painted
from salus.datasets.protocol import split
from salus.io import read_image, read_study, write_image
from salus.preprocess import lesions
from salus.preprocess.lesions import DIFFERENT, PLACES, foreground, foreign_pieces, intensity_range
from salus.training import train
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
    assert set(lesions[0].groups) == {"lesion_place", "lesion_diameter", "lesion_contrast"}
    assert split(found), "what is learned from can be divided once more"


KINDS = [(".nii.gz", "mm", 0), (".tif", "px", 0), (".png", "px", 8), (".png", "px", 16)]


@pytest.mark.parametrize(("suffix", "unit", "depth"), KINDS)
def test_a_lesion_changes_its_pixels_and_those_it_fades_over_and_no_other(tmp_path, suffix, unit, depth):
    root, affine = tmp_path / "healthy", np.diag([0.7, 0.7, 3.0, 1.0])
    root.mkdir()
    for number, picture in enumerate(discs(PEOPLE)[:, 0]):
        if depth:
            png(root / f"{number:02d}.png", 0.7 * picture, bits=depth)
        else:
            values = (1000 * picture - 17).astype(np.float32)
            scan = Image(array=values, affine=affine if unit == "mm" else np.eye(4), unit=unit)
            write_image(scan, root / f"{number:02d}{suffix}")
    found = painted(write_painted(tmp_path / "painted", root))
    bare = {case.patient_id: read_study(case.images) for case in found if case.label == Label.NORMAL}
    lesions = [case for case in found if case.label == Label.ABNORMAL]
    assert len(lesions) > 6
    for case in lesions:
        image, before = read_study(case.images), bare[case.patient_id]
        assert (image.unit, image.depth) == (before.unit, before.depth) == (unit, depth)
        np.testing.assert_allclose(image.affine, before.affine, atol=1e-5)
        diameter, contrast = (float(case.groups[f"lesion_{name}"]) for name in ("diameter", "contrast"))
        mask = read_image(case.findings[0].mask.path).array > 0
        assert np.pi * diameter**2 / 4 == pytest.approx(mask.sum(), rel=0.1, abs=2)
        added = image.array - before.array
        assert (added[mask] * contrast >= 0).all()
        assert case.findings[0].name == ("bright" if contrast > 0 else "dark")
        assert np.abs(added[mask]).mean() > 2 * np.abs(added[~mask]).mean()
        far = distance_transform_edt(~mask) > 2 + 0.6 * diameter  # fading ends at a quarter, outlines are uneven
        assert (added[far] == 0).all()


def test_a_foreign_piece_is_another_patient_where_the_mask_says_and_nothing_elsewhere(tmp_path):
    root, rng = tmp_path / "healthy", np.random.default_rng(3)
    for number, picture in enumerate(discs(PEOPLE)[:, 0]):
        png(root / f"{number:02d}.png", picture * rng.uniform(0.4, 0.9, picture.shape), bits=16)  # everybody differs
    found = painted(write_painted(tmp_path / "painted", root, foreign=True))
    bare = {
        case.patient_id: read_study(case.images).array
        for case in found
        if case.split == Split.TEST and not case.findings
    }
    pieces = [case for case in found if case.label == Label.ABNORMAL]
    assert len(pieces) > 6
    for case in pieces:
        before, after = bare[case.patient_id], read_study(case.images).array
        mask = read_image(case.findings[0].mask.path).array > 0
        assert case.findings[0].name == "foreign"
        diameter, difference = (float(case.groups[f"lesion_{name}"]) for name in ("diameter", "contrast"))
        assert np.pi * diameter**2 / 4 == pytest.approx(mask.sum(), rel=0.1, abs=2)
        added = after - before
        tissue = foreground(before / before.max())
        assert np.abs(added[mask]).mean() == pytest.approx(difference * intensity_range(before, tissue), rel=0.05), (
            "the contrast of a foreign piece is its mean difference"
        )
        assert difference >= DIFFERENT
        assert (added[distance_transform_edt(~mask) > 2 + 0.6 * diameter] == 0).all()


def test_a_whole_foreign_piece_is_the_other_person_in_this_ones_range(monkeypatch):
    monkeypatch.setattr(lesions, "FOREIGN", (1.0, 1.0))
    first, other = np.pad(np.random.default_rng(0).uniform(0.5, 1, (2, 24, 24)), ((0, 0), (4, 4), (4, 4)))
    inside = first > 0
    made = list(
        foreign_pieces(
            first.astype(np.float32), np.float32(0.5) * other.astype(np.float32), inside, np.random.default_rng(1)
        )
    )
    assert made
    full, its = intensity_range(first, inside), intensity_range(other, inside)
    for one in made:
        core = distance_transform_edt(one.mask) > 0.3 * one.diameter  # fading is over
        np.testing.assert_allclose(one.picture[core], np.clip(other * full / its, 0, 1)[core], rtol=1e-5)
        assert one.place in PLACES


def test_people_who_are_alike_make_no_foreign_pieces(tmp_path):
    twins = tmp_path / "twins"
    for number in range(PEOPLE):
        png(twins / f"{number:02d}.png", 0.7 * discs(1)[0, 0])
    with pytest.raises(LayoutError, match="has room for lesions and a patient beside it who differs"):
        write_painted(tmp_path / "a", twins, foreign=True)


def test_blobs_and_foreign_pieces_are_two_sets_and_older_folders_hold_blobs(healthy, tmp_path):
    root = write_painted(tmp_path / "painted", healthy)
    about = json.loads((root / "painted.json").read_text())
    assert about.pop("foreign") is False
    (root / "painted.json").write_text(json.dumps(about))
    assert write_painted(root, healthy) == root
    with pytest.raises(LayoutError, match="is not the data set asked for"):
        write_painted(root, healthy, foreign=True)


def test_lesions_brighter_than_the_image_are_painted_where_the_bits_allow(healthy, tmp_path):
    found = painted(write_painted(tmp_path / "painted", healthy))
    brightest = [
        read_study(case.images).array.max() for case in found if case.findings[:1] and "bright" in case.case_id
    ]
    assert max(brightest) > 0.71 * 255


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


def test_a_painted_image_keeps_patient_and_groups_of_the_healthy_one(healthy, tmp_path):
    files = sorted((healthy / "train/good").glob("*.png"))
    with (healthy / "metadata.csv").open("w") as table:
        print("file,patient_id,scanner,lesion_place", file=table)
        for number, file in enumerate(files):
            print(f"train/good/{file.name},p{number // 2},s{number % 2},none", file=table)
    found = painted(write_painted(tmp_path / "painted", healthy))
    bare = [case for case in found if case.split == Split.TEST and case.label == Label.NORMAL]
    lesions = [case for case in found if case.label == Label.ABNORMAL]
    assert {case.patient_id for case in lesions} <= {case.patient_id for case in bare}
    assert len(bare) == 2 * len({case.patient_id for case in bare})
    assert {case.groups["scanner"] for case in lesions} == {"s0", "s1"}
    assert {case.groups["lesion_place"] for case in lesions} <= {"centre", "middle", "edge"}
    assert split(found), "nobody is in two parts"


def test_a_painted_test_is_learned_for_from_one_set_alone(healthy, tmp_path):
    root = write_painted(tmp_path / "painted", healthy)
    for number, picture in enumerate(discs(20, seed=9)[:, 0]):
        png(tmp_path / "others" / f"{number}.png", picture)
    for main, name, further, other in (
        (root, "painted", tmp_path / "others", "folder"),
        (tmp_path / "others", "folder", root, "painted"),
    ):
        with pytest.raises(ConfigError, match="a painted test knows the people of one data set"):
            train("ae", main, tmp_path / "m", dataset=name, also=[(other, further)], preset="tiny")


def test_other_pixels_under_the_same_names_are_another_set(healthy, tmp_path):
    root = write_painted(tmp_path / "painted", healthy)
    file = healthy / f"{held_out(split(open_dataset('folder', healthy)))[0].case_id}.png"
    png(file, discs(1, seed=77)[0, 0])
    with pytest.raises(LayoutError, match="is not the data set asked for"):
        write_painted(root, healthy)


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
    for content in (None, "{}", "no json"):
        if content:
            (healthy / "painted.json").write_text(content)
        with pytest.raises(LayoutError, match=r"holds no painted lesions: painted\.json cannot be read"):
            painted(healthy)
    (healthy / "painted.json").unlink()
    root = write_painted(tmp_path / "painted", healthy)
    about = json.loads((root / "painted.json").read_text())
    (root / "painted.json").write_text(json.dumps({**about, "source": str(tmp_path / "gone")}))
    with pytest.raises(LayoutError, match="gone is not a folder"):
        painted(root)

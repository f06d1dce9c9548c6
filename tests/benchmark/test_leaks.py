import json

import numpy as np
import pytest
from PIL import Image as Picture

from salus.benchmark.leaks import check, difference_hashes
from tests.conftest import discs
from tests.datasets.layouts import png


@pytest.fixture
def root(tmp_path):
    """40 discs to learn from, 20 healthy and 20 abnormal to test with; nothing but the hole tells them apart."""
    for place, pictures in (
        ("train/good", discs(40)),
        ("test/good", discs(20, seed=1)),
        ("test/hole", discs(20, hole=True, seed=2)),
    ):
        for index, picture in enumerate(pictures):
            png(tmp_path / place / f"{index * 37 % 100:03}.png", picture[0])
    return tmp_path


def repaint(path, change):
    picture = np.asarray(Picture.open(path))
    Picture.fromarray(change(picture)).save(path)


def names(found):
    return {giveaway.name for giveaway in found.giveaways if giveaway.telling}


def test_a_clean_set_is_clean(root):
    found = check(root)
    assert found.duplicates == ()
    assert not names(found) - {"brightness: mean of the stored values", "brightness: mean, scaled"}  # a hole is dark
    assert found.unread == ()
    assert [what for what, _ in found.unchecked] == ["patients"]  # the ids know none with two pictures


def test_a_copy_in_another_split_is_found_whatever_its_brightness(root):
    copy = np.asarray(Picture.open(root / "train/good/037.png")).astype(float)
    Picture.fromarray(np.round(0.8 * copy + 10).astype(np.uint8)).save(root / "test/good/copy.png")
    (pair,) = check(root).duplicates
    assert pair[:2] == ("test/good/copy", "train/good/037")
    assert pair[2] > 0.999


def test_a_copy_in_the_same_split_is_none(root):
    picture = (root / "test/good/037.png").read_bytes()
    (root / "test/hole/zz.png").write_bytes(picture)
    assert check(root).duplicates == ()


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda picture: np.pad(picture, ((0, 0), (0, 3))), "size: pixels"),
        (
            lambda picture: np.maximum(picture, np.uint8(40) * (np.indices(picture.shape)[0] == 0)),
            "border: mean, scaled",
        ),
        (lambda picture: picture // 2, "brightness: mean of the stored values"),
    ],
)
def test_a_class_that_is_told_by_size_border_or_brightness(root, change, name):
    for path in (root / "test/hole").glob("*.png"):
        repaint(path, change)
    found = check(root)
    assert name in names(found)
    assert next(g.auroc for g in found.giveaways if g.name == name) in (pytest.approx(1.0), pytest.approx(0.0))


def test_a_class_that_is_told_by_its_names(root):
    for path in list((root / "test/hole").glob("*.png")):
        path.rename(path.with_name(f"1{path.name}"))
    assert {"name: length", "name: last number"} <= names(check(root))


def test_a_class_that_is_told_by_the_letters_of_its_names(root):
    for folder, word in (("good", "NORM"), ("hole", "TUMR")):
        for path in list((root / "test" / folder).glob("*.png")):
            path.rename(path.with_name(f"{word}-1{path.name}"))
    assert names(check(root)) >= {"name: its letters"}
    for path in list((root / "test").rglob("TUMR*.png")):
        path.rename(path.with_name(path.name.replace("TUMR", "NORM")))
    assert "name: its letters" not in names(check(root))


def test_a_patient_in_two_splits_is_found(root):
    (root / "metadata.csv").write_text("file,patient_id\ntrain/good/037.png,p\ntest/good/037.png,p\n")
    found = check(root)
    assert "patient 'p' is in two splits" in found.patients[0]
    assert not found.clean


def test_what_cannot_be_read_is_told(root):
    (root / "test/good/broken.png").write_text("no picture")
    found = check(root)
    assert [name for name, _ in found.unread] == ["broken.png"]
    assert not found.clean


ALONE = "no patient has two images by the ids that the data set gives"
ONE_SPLIT = "all images are in one split"
ONE_CLASS = "no healthy and abnormal cases to compare"
CHECKS = ("patients", "duplicates", "giveaways")


@pytest.mark.parametrize(
    ("kept", "unchecked", "code"),
    [
        (("train/good",), {"patients": ALONE, "giveaways": ONE_CLASS}, 0),  # divided as training would
        (("test/hole",), {"patients": ONE_SPLIT, "duplicates": ONE_SPLIT, "giveaways": ONE_CLASS}, 3),
        ((), dict.fromkeys(CHECKS, "no image could be read"), 3),
    ],
)
def test_which_checks_could_find_nothing_is_told(root, salus, kept, unchecked, code):
    for folder in ("train/good", "test/good", "test/hole"):
        for path in (root / folder).iterdir():
            if not kept:
                path.write_text("no picture")
            elif folder not in kept:
                path.unlink()
    ended, out, _ = salus("datasets", "check", root, "--json")
    told = json.loads(out)
    assert dict(told["unchecked"]) == unchecked
    assert (ended, told["clean"]) == (code, code == 0)
    _, out, _ = salus("datasets", "check", root)
    assert all(f"{what} could not be looked for: {reason}" in out for what, reason in unchecked.items())
    assert ("nothing found by the other checks" in out) == (code == 0)


def test_hashes_by_hand():
    ramp = np.tile(np.linspace(0, 1, 32, dtype=np.float32), (32, 1))
    hashes = difference_hashes(np.stack([ramp, ramp, ramp.T]))
    assert hashes.shape == (3, 8)
    assert (hashes[0] == hashes[1]).all()
    # Right: all but the first column brighter than their left neighbour, 240 of 256; below: nothing.
    assert np.bitwise_count(hashes[0]).sum() == 240
    assert np.bitwise_count(hashes[0] ^ hashes[2]).sum() == 480


def test_the_command_tells_and_exits_with_3(root, salus):
    (root / "test/good/copy.png").write_bytes((root / "train/good/037.png").read_bytes())
    code, out, _ = salus("datasets", "check", root)
    assert code == 3
    assert "nearly the same picture in two splits (correlation 1.0000): test/good/copy and train/good/037" in out
    code, _, err = salus("datasets", "check")
    assert code == 2
    assert "takes the folder" in err


def test_the_chest_radiographs_are_told_by_their_borders(shared_data):
    """What SOURCE.md warns of, measured: positioning and exposure differ between the classes."""
    found = check(shared_data / "chest_xray_pneumonia")
    assert {"border: mean, scaled", "size: bytes of the file"} <= names(found)


def test_people_with_two_ids_are_found_among_the_hemispheres(shared_data):
    pairs = {
        frozenset(name.split("/")[-1] for name in pair[:2])
        for pair in check(shared_data / "brain_flair_stroke_hemi").duplicates
    }
    assert frozenset({"sub-0963_axial_left", "sub-0967_axial_left"}) in pairs

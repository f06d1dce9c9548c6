"""The size of the code without labels: estimates against what is known, the choice by hand, the command, `auto`."""

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose

from salus.benchmark.latent import components, elbow, flat_from, others, two_nearest
from salus.benchmark.measures import DIGITS
from salus.benchmark.sight import ROUNDS, Look, Painted, Sight, painted, sights, smallest
from salus.core import Case, Dataset, Split
from salus.core.errors import LayoutError
from salus.datasets import open_dataset
from salus.datasets.protocol import split
from salus.io import read_study, study_sha256
from salus.model import Model
from salus.preprocess.cache import Prepared, PreparedCache
from salus.preprocess.lesions import CONTRASTS
from salus.training.latent import MOST, chosen, distances, maximum_likelihood, one_each

TINY = ("--preset", "tiny", "--epochs", "2")


def pictures(patients: list[str], each: int = 2) -> Painted:
    """Slices of nothing, with `each` painted ones a slice."""
    bare = np.zeros((len(patients), 1, 8, 8), dtype=np.float32)
    of = np.repeat(np.arange(len(patients)), each)
    return Painted(bare=bare, lesions=bare[of], of=of, patients=tuple(patients))


def discs_prepared(count: int, side: int = 64) -> tuple[Prepared, Dataset]:
    rows, columns = np.mgrid[:side, :side]
    disc = (np.hypot(rows - side / 2, columns - side / 2) < 0.4 * side) * np.float32(0.5)
    cases = tuple(Case(case_id=str(k), patient_id=f"p{k}", images=()) for k in range(count))
    made = np.repeat(disc[None, None].astype(np.float32), count, axis=0)
    return Prepared(rows=made, case=np.arange(count), failures=()), Dataset("discs", cases)


@pytest.mark.parametrize("dimension", [1, 2, 5])
def test_intrinsic_dimensions_of_a_known_manifold(dimension):
    rng = np.random.default_rng(0)
    inside = rng.uniform(size=(800, dimension)) @ np.linalg.qr(rng.normal(size=(40, dimension)))[0].T
    assert_allclose(two_nearest(inside.astype(np.float32)), dimension, rtol=0.15)
    assert_allclose(maximum_likelihood(distances(inside.astype(np.float32))), dimension, rtol=0.2)  # low at borders
    patients = [str(n) for n in range(800)]
    size, found = chosen(inside.astype(np.float32).reshape(800, 1, 8, 5), patients, (1, 2, 4, 16))
    assert size == {1: 1, 2: 2, 5: 4}[dimension]
    assert found == maximum_likelihood(distances(inside.astype(np.float32)))


@pytest.mark.parametrize("dimension", [1, 2])
def test_maximum_likelihood_is_not_biased_where_there_is_no_border(dimension):
    angles = np.random.default_rng(0).uniform(0, 2 * np.pi, (3000, dimension))
    torus = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    assert_allclose(maximum_likelihood(distances(torus)), dimension, rtol=0.03)


def test_images_that_lie_equally_far_apart_have_no_dimension():
    assert maximum_likelihood(distances(np.eye(25))) == np.inf
    with pytest.raises(LayoutError, match=r"equally far apart have no dimension\. Set latent to a number"):
        chosen(np.eye(25, dtype=np.float32).reshape(25, 1, 5, 5), [str(n) for n in range(25)])


def test_copies_do_not_make_a_dimension():
    rows = np.random.default_rng(0).uniform(size=(300, 2))
    assert_allclose(two_nearest(np.concatenate([rows, rows])), two_nearest(rows), rtol=0.1)


def test_slices_of_one_patient_do_not_make_a_dimension():
    """Slices of a patient lie on a line, people on a plane."""
    rng = np.random.default_rng(0)
    people = rng.uniform(size=(300, 2)) @ rng.normal(size=(2, 16))
    slices = people[:, None] + 1e-3 * rng.uniform(size=(300, 10, 1)) * rng.normal(size=16)
    rows = slices.reshape(-1, 1, 4, 4)
    patients = [str(n) for n in range(300) for _ in range(10)]
    assert_allclose(chosen(rows, patients)[1], 2, rtol=0.15)
    alone = [str(n) for n in range(3000)]
    assert chosen(rows, alone)[1] < 1.8  # what it would be: nearest are ten slices on a line, then people
    rules = {one["rule"]: one["value"] for one in others((1, 2, 4), (0.3, 0.1, 0.1), rows, patients)}
    assert_allclose(rules["intrinsic dimension, TwoNN"], 2, rtol=0.15)
    assert_allclose(two_nearest(rows.reshape(3000, -1)), 1, rtol=0.15)  # what it would be


def test_of_very_many_people_some_are_drawn():
    patients = [f"{n // 2:05}" for n in range(2 * MOST + 600)]
    kept = one_each(patients)
    assert len({patients[index] for index in kept}) == len(kept) == MOST
    assert kept.max() > 2 * MOST, "not the first ones"
    assert list(one_each(["b", "a", "b", "a"])) in ([0, 1], [0, 3], [1, 2], [2, 3])


@pytest.mark.parametrize("different", [1, 3])
def test_a_dimension_needs_four_different_images(different):
    rows = np.random.default_rng(0).random((different, 16)).astype(np.float32).repeat(10, axis=0)
    patients = [str(number) for number in range(len(rows))]
    rules = {one["rule"]: one["value"] for one in others((1, 2, 4), (0.3, 0.1, 0.1), rows, patients)}
    assert not [rule for rule in rules if "dimension" in rule]
    assert rules["components for 95% of the variance"] == max(1, different - 1)


def test_components_hold_the_share_of_the_variance_that_is_asked():
    rows = np.diag([4.0, 2.0, 1.0, 0.0]) @ np.eye(4)
    rows = np.concatenate([rows, -rows])  # variances 16, 4, 1 of 21
    assert [components(rows, share) for share in (0.7, 0.9, 0.99)] == [1, 2, 3]


def test_the_elbow_lies_farthest_below_the_line_from_end_to_end():
    assert elbow([1, 2, 4, 8, 16], [1.0, 0.5, 0.2, 0.15, 0.1]) == 4
    assert elbow([1, 2, 4], [1.0, 0.5, 0.0]) == 1  # a straight line has none


def test_the_error_is_flat_from_where_it_never_again_exceeds_the_least_by_a_twentieth():
    assert flat_from([1, 2, 4, 8], [1.0, 0.41, 0.40, 0.405]) == 2
    assert flat_from([1, 2, 4, 8, 16], [1.0, 0.40, 0.43, 0.405, 0.40]) == 8
    assert flat_from([1, 2, 4], [1.0, 0.6, 0.3]) is None


def test_sights_by_hand():
    several = pictures(["a", "b"], each=1)
    seen = sights(
        [
            Look(bare=np.array([0.0, 1.0]), lesions=np.array([2.0, 3.0])),  # all apart
            Look(bare=np.array([0.0, 2.0]), lesions=np.array([1.0, 3.0])),  # three pairs of four
            Look(bare=np.array([0.0, 0.0]), lesions=np.array([0.0, 0.0])),
        ],
        several,
    )
    assert [one.auroc for one in seen] == [1.0, 0.75, 0.5]
    assert [one.behind for one in seen] == [0.0, 0.25, 0.5]
    assert seen[0].standard_error == seen[2].standard_error == 0  # 0.5 behind whoever is drawn
    # Drawn are aa and bb, a quarter each and 1 apart from bare and painted, and ab with half of the draws.
    assert_allclose(seen[1].standard_error, np.sqrt(0.5 * 0.5) * 0.25, rtol=0.1)


def test_slices_of_one_patient_are_drawn_together():
    rng = np.random.default_rng(0)
    looks = [Look(bare=rng.normal(size=40), lesions=rng.normal(gain, size=80)) for gain in (1.0, 0.8)]
    alone, together = (sights(looks, pictures([str(k // slices) for k in range(40)]))[1] for slices in (1, 40))
    assert alone.behind == together.behind
    assert alone.standard_error > 0.01
    assert together.standard_error < 1e-12


def test_the_smallest_size_within_a_standard_error_of_the_best_is_taken():
    seen = [
        Sight(auroc=0.70, behind=0.10, standard_error=0.02),
        Sight(auroc=0.79, behind=0.01, standard_error=0.02),
        Sight(auroc=0.80, behind=0.0, standard_error=0.0),
        Sight(auroc=0.795, behind=0.005, standard_error=0.02),
    ]
    assert smallest(seen) == 1
    assert smallest([replace(seen[1], standard_error=0.005), *seen[2:]]) == 1


def test_lesions_are_the_same_ones_every_time_and_lie_in_their_own_slice():
    prepared, cases = discs_prepared(5)
    first, again, other = painted(prepared, cases, 0), painted(prepared, cases, 0), painted(prepared, cases, 1)
    assert len(first.lesions) == 5 * 3 * ROUNDS
    assert first.patients == ("p0", "p1", "p2", "p3", "p4")
    assert (first.lesions == again.lesions).all()
    assert (first.lesions != other.lesions).any()
    changes = np.abs(first.lesions - first.bare[first.of])[:, 0]
    assert (changes.max(axis=(1, 2)) > 0.9 * 0.5 * min(abs(c) for c in CONTRASTS)).all()
    assert not changes[:, first.bare[0, 0] == 0].any()  # nothing outside the body


def test_lesions_are_of_any_size_within_the_body_and_sharp_or_soft():
    prepared, cases = discs_prepared(12)
    found = painted(prepared, cases, 0)
    changes = np.abs(found.lesions - found.bare[found.of])[:, 0]
    strength = changes.max(axis=(1, 2), keepdims=True)
    shares = (changes >= 0.5 * strength).sum(axis=(1, 2)) / (found.bare[0, 0] > 0).sum()
    assert_allclose(np.quantile(shares, [0, 0.5, 1]), [0.01, np.sqrt(0.01 * 0.5), 0.5], rtol=0.3)
    large = shares > 0.2
    between = ((changes > 0.05 * strength) & (changes < 0.95 * strength)).sum(axis=(1, 2)) / (changes > 0).sum(
        axis=(1, 2)
    )
    assert between[large].min() < 0.15 < 0.4 < between[large].max()


def test_few_patients_or_images_without_room_for_a_lesion_cannot_choose():
    prepared, cases = discs_prepared(5)
    for rows, count in ((prepared.rows[:4], 4), (prepared.rows * 0, 0)):
        with pytest.raises(LayoutError, match=rf"5 validation patients .* here {count}\."):
            painted(replace(prepared, rows=rows), cases, 0)


def test_the_command_chooses_from_healthy_images_and_goes_on(salus, disc_folder, tmp_path):
    out = tmp_path / "out"
    command = ("latent", "ae", "--data", disc_folder, "--out", out, "--sizes", "8,1", *TINY)
    code, said, _ = salus(*command, "--json")
    assert code == 0
    answer = json.loads(said)
    about = json.loads((out / "latent.json").read_text())
    assert about["chosen"] == answer["chosen"]
    assert [row["latent"] for row in about["sizes"]] == [1, 8]
    assert all(0 <= row["test_auroc"] <= 1 for row in about["sizes"])
    assert {one["latent"] for one in about["others"]} <= {1, 8}
    with (out / "latent.csv").open(newline="") as file:
        assert [row["painted_auroc"] for row in csv.DictReader(file)] == [
            str(row["painted_auroc"]) for row in about["sizes"]
        ]
    before = {path: path.stat().st_mtime_ns for path in (out / "models").rglob("*.*")}
    assert salus(*command)[0] == 0
    assert {path: path.stat().st_mtime_ns for path in (out / "models").rglob("*.*")} == before
    page = (out / "latent.html").read_text()
    assert f"Healthy images choose 8 entries: they have some {about['dimension']:.1f} dimensions" in page


def test_who_cannot_choose_is_told_before_anything_is_trained(salus, disc_folder, tmp_path):
    few = shutil.copytree(disc_folder, tmp_path / "few")
    for path in sorted((few / "train/good").iterdir())[30:]:
        path.unlink()
    code, _, said = salus("latent", "--data", few, "--out", tmp_path / "out", "--sizes", "1,8", *TINY)
    assert (code, "5 validation patients" in said) == (2, True)
    assert not (tmp_path / "out").exists()


def test_labels_of_the_test_do_not_choose(salus, disc_folder, tmp_path):
    without = shutil.copytree(disc_folder, tmp_path / "without", ignore=shutil.ignore_patterns("hole"))
    chosen = []
    for data in (disc_folder, without):
        out = tmp_path / data.name / "out"
        assert salus("latent", "--data", data, "--out", out, "--sizes", "1,8", *TINY)[0] == 0
        about = json.loads((out / "latent.json").read_text())
        chosen.append([(row["painted_auroc"], row["behind"]) for row in about["sizes"]])
    assert chosen[0] == chosen[1]
    assert about["sizes"][0]["test_auroc"] is None


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--sizes", "4,4"), "numbers from 1 up, each once; got 4, 4"),
        (("--sizes", "0,4"), "numbers from 1 up"),
        (("--sizes", "a"), "--sizes takes whole numbers"),
        (("--set", "latent=3"), "say which sizes to try with --sizes"),
        (("knn",), "knn has no code whose size could be chosen"),
        (("--set", "code=spatial"), "a spatial code has some at each place"),
    ],
)
def test_what_cannot_be_tried_is_refused(words, expected, salus, disc_folder, tmp_path):
    code, _, said = salus("latent", *words, "--data", disc_folder, "--out", tmp_path / "out", *TINY[:2])
    assert code == 2
    assert expected in said


@pytest.mark.parametrize("method", ["ae", "vae", "ra"])
def test_auto_is_the_training_of_the_size_that_the_command_chooses(method, salus, disc_folder, tmp_path):
    def trained(name: str, latent: object) -> dict:
        command = ("train", *common, tmp_path / name, "--set", f"latent={latent}")
        code, said, _ = salus(*command)
        assert code == 0, said
        assert (f"latent=auto took {about['chosen']}." in said) == (latent == "auto")
        return json.loads((tmp_path / name / "model.json").read_text())

    common = (method, "--data", disc_folder, "--preset", "tiny", "--epochs", 1, "--out")
    assert salus("latent", *common, tmp_path / "study")[0] == 0
    about = json.loads((tmp_path / "study" / "latent.json").read_text())
    assert 1 < about["chosen"] < 1024, "the ends of the scale say little"
    auto, alone = trained("auto", "auto"), trained("alone", about["chosen"])
    assert auto["settings"]["latent"] == auto["card"]["latent"]["size"] == about["chosen"]
    assert auto["card"]["latent"]["dimension"] == pytest.approx(about["dimension"], abs=10**-DIGITS)
    assert auto["card"]["plan"]["settings"]["latent"] == "auto"
    assert auto["files"] == alone["files"]  # the same weights to the bit


def test_auto_counts_each_patient_once_and_needs_some(salus, disc_folder, tmp_path):
    data = shutil.copytree(disc_folder, tmp_path / "data")
    files = sorted((data / "train/good").iterdir())
    for path in files:
        shutil.copy(path, path.with_stem(f"again-{path.stem}"))
    rows = [f"train/good/{name}{path.name},{path.stem}" for path in files for name in ("", "again-")]
    (data / "metadata.csv").write_text("\n".join(["file,patient_id", *rows]))
    assert salus("train", "ae", "--data", data, "--out", tmp_path / "m", "--set", "latent=auto", *TINY)[0] == 0
    learned = split(open_dataset("folder", data)).only(split=Split.TRAIN)
    model = Model.load(tmp_path / "m")
    pictures = PreparedCache().prepare(learned, model.preparation, read_study, study_sha256).rows
    single = np.unique(pictures.reshape(len(pictures), -1), axis=0)
    assert len(single) == len({case.patient_id for case in learned}) < len(learned)
    assert model.card["latent"]["dimension"] == pytest.approx(maximum_likelihood(distances(single)))
    for path in files[24:]:
        path.unlink()
        path.with_stem(f"again-{path.stem}").unlink()
    (data / "metadata.csv").write_text("\n".join(["file,patient_id", *rows[:48]]))
    code, _, said = salus("train", "ae", "--data", data, "--out", tmp_path / "few", "--set", "latent=auto", *TINY)
    assert code == 2
    assert "21 healthy people to learn from or more whose images differ, here 20. Set latent to a number" in said


def test_auto_goes_on_where_it_was_interrupted(salus, disc_folder, tmp_path, monkeypatch):
    from salus.training import loop

    command = ("train", "ae", "--data", disc_folder, "--set", "latent=auto", *TINY, "--out")
    assert salus(*command, tmp_path / "whole")[0] == 0
    passes, one_epoch = [], loop.one_epoch

    def interrupted(*arguments):
        passes.append(1)
        if len(passes) == 2:
            raise KeyboardInterrupt
        return one_epoch(*arguments)

    monkeypatch.setattr(loop, "one_epoch", interrupted)
    assert salus(*command, tmp_path / "torn")[0] == 130
    code, _, said = salus(*command, tmp_path / "torn")
    assert (code, "Add --resume" in said) == (2, True)
    assert salus(*command, tmp_path / "torn", "--resume")[0] == 0
    assert len(passes) == 3, "the first epoch was not learned again"
    files = [json.loads((tmp_path / name / "model.json").read_text())["files"] for name in ("whole", "torn")]
    assert files[0] == files[1]


def test_a_method_without_a_code_cannot_choose_one(salus, disc_folder, tmp_path):
    code, _, said = salus("train", "pca", "--data", disc_folder, "--out", tmp_path / "m", "--set", "latent=auto")
    assert code == 2
    assert "pca has no code whose size could be chosen" in said

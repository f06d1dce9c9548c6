"""A trained model: preparation + detector + calibration + card, in a folder that holds no code.

    MODEL/model.json            what it is; carries its own SHA-256 and that of the weights
    MODEL/weights.safetensors   the detector's tensors; frozen trunks are not among them
    MODEL/train.csv, loss.png   how it was trained
    MODEL/progress/             only while training
    MODEL/tracked.json          which run it is where it was tracked

A name in `model.json` is looked up in the registry; no import path is ever read from a file.
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from salus.core import Case, Dataset, Label, Split
from salus.core.errors import ConfigError, ImageError, LayoutError, ModelError
from salus.core.machine import keep_freed_memory
from salus.datasets import DATASETS, open_dataset
from salus.datasets.protocol import split
from salus.detectors import Detector, build
from salus.io import read_study, study_sha256
from salus.io.files import file_sha256, make_folder, write_whole
from salus.metrics import FALSE_ALARMS as OF_CURVE
from salus.metrics import pixel_threshold, threshold_grid_ra2024
from salus.preprocess.cache import PreparedCache
from salus.preprocess.preparation import Preparation

FORMAT = 1
WEIGHTS = "weights.safetensors"
FALSE_ALARMS = 0.05  # share of healthy cases that may be flagged, unless said otherwise
PREPARATION = TypeAdapter(Preparation)
Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What healthy people score, so that a threshold means a share of false alarms.

    Attributes:
        scores: ascending, of one healthy case a patient: slices or views of one person are no draws of their own.
        false_alarms: share of healthy cases that may be flagged, in (0, 1).
        pixel_threshold: map value that at most `false_alarms` of the healthy pixels exceed.
        grid_threshold: the same for 5 % by the published rule, `threshold_grid_ra2024`, to compare with its tables
            only; None where more lie above its grid, and in models of before it was kept.
        curve_thresholds: `pixel_threshold` of each share in `metrics.FALSE_ALARMS`, for the hit-rate curve; None in
            models of before they were kept.
    """

    scores: tuple[float, ...]
    false_alarms: float
    pixel_threshold: float
    grid_threshold: float | None = None
    curve_thresholds: tuple[float, ...] | None = None

    @property
    def threshold(self) -> float | None:
        """The healthy score above which fewer than `false_alarms` of the healthy lie, conformal.

        A case is flagged where its p-value is at most `false_alarms`, which is where its score exceeds this one.
        None where the calibration cases are too few for the asked share: n must be at least 1/false_alarms - 1.
        """
        allowed = int(np.floor(self.false_alarms * (len(self.scores) + 1) + 1e-9))
        return None if allowed == 0 else self.scores[len(self.scores) - allowed]

    @property
    def shortfall(self) -> str:
        """Why there is no threshold; empty where there is one."""
        return shortfall(len(self.scores), self.false_alarms)

    def p_value(self, score: float) -> float:
        """(1 + healthy scores at least as high) / (1 + healthy scores): valid if the case is healthy."""
        as_high = len(self.scores) - int(np.searchsorted(self.scores, score, side="left"))
        return (1 + as_high) / (1 + len(self.scores))


CALIBRATION = TypeAdapter(Calibration)


def shortfall(patients: int, false_alarms: float = FALSE_ALARMS) -> str:
    """Why so many healthy calibration patients give no threshold; empty where they do."""
    needed = int(np.ceil(1 / false_alarms - 1 - 1e-9))
    if patients >= needed:
        return ""
    return (
        f"{patients} healthy calibration patients cannot tell {100 * false_alarms:.3g} % of false alarms; {needed} are "
        "needed: run `salus calibrate` with more"
    )


@dataclass(frozen=True, kw_only=True)
class Model:
    """All that is needed to judge a new image the way the healthy ones were judged.

    Attributes:
        name, settings, score: enough for `detectors.build`.
        detector: in eval mode.
        preparation: resolved (no "auto").
        precision: of the network's products, the same in calibration and screening, wherever it runs.
        calibration: None until calibrated.
        card: for people and audits: data set, counts, recipe, seed, manifest hash, unit, modality.
    """

    name: str
    settings: Mapping[str, Any]
    score: Mapping[str, Any]
    detector: Detector
    preparation: Preparation
    precision: Precision = "fp32"
    calibration: Calibration | None = None
    card: Mapping[str, Any] = field(default_factory=dict)

    def describe(self, weights_sha256: str) -> dict[str, Any]:
        """`model.json` without its own hash."""
        return {
            "format": FORMAT,
            "detector": self.name,
            "settings": dict(self.settings),
            "score": dict(self.score),
            "preparation": PREPARATION.dump_python(self.preparation, mode="json"),
            "precision": self.precision,
            "calibration": asdict(self.calibration) if self.calibration else None,
            "card": dict(self.card),
            "versions": versions(),
            "files": {WEIGHTS: weights_sha256},
        }

    def save(self, folder: Path) -> None:
        """Write the folder; `model.json` comes last, so that a folder that has one is complete.

        Raises:
            StorageError: disk full or not writable; an earlier model there stays whole.
        """
        make_folder(folder)
        weights = save_tensors(learned(self.detector))
        about = self.describe(hashlib.sha256(weights).hexdigest())
        write_whole(folder / WEIGHTS, weights)
        write_whole(folder / "model.json", sealed(about).encode())

    @classmethod
    def load(cls, folder: Path, *, device: str = "cpu") -> "Model":
        """Read and verify a folder.

        Args:
            device: "auto", "cpu", "cuda", "cuda:1".

        Raises:
            ConfigError: no such device here.
            ModelError: missing, altered, newer, or for a setting this version does not know.
        """
        about, place = opened(folder), device_of(device)
        weights = folder / WEIGHTS
        if not weights.is_file():
            raise ModelError(f"{weights} is missing. A model folder holds model.json and {WEIGHTS}; copy both.")
        if (found := file_sha256([weights])) != about["files"][WEIGHTS]:
            raise ModelError(
                f"{weights} was altered: SHA-256 {found[:12]}, model.json says {about['files'][WEIGHTS][:12]}."
            )
        try:
            detector = build(about["detector"], about["settings"], about["score"])
            preparation = PREPARATION.validate_python(about["preparation"])
            calibration = about["calibration"] and CALIBRATION.validate_python(about["calibration"])
            missing, unknown = detector.load_state_dict(load_tensors(weights.read_bytes()), strict=False)
        except (ConfigError, ValidationError, SafetensorError, RuntimeError) as error:
            raise ModelError(f"{folder} does not fit this version of Salus: {error}") from error
        if unknown or (lacking := sorted(set(missing) & set(detector.learned()))):
            raise ModelError(f"{weights} lacks {lacking} or has too much {unknown}.")
        return cls(
            name=about["detector"],
            settings=about["settings"],
            score=about["score"],
            detector=detector.to(place).eval(),
            preparation=preparation,
            precision=about["precision"],
            calibration=calibration or None,
            card=about["card"],
        )

    @property
    def summary(self) -> str:
        """One word or two for tables: the detector and what its map is made of."""
        judged_by = self.detector.judged_by
        return f"{self.name} + {judged_by}" if judged_by else self.name


def model_id(folder: Path) -> str:
    """SHA-256 that names everything that can change a verdict: settings, weights, calibration."""
    return str(opened(folder)["sha256"])


@torch.no_grad()
def detections(
    detector: Detector, rows: NDArray[np.float32], *, precision: Precision = "fp32"
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32] | None]:
    """What `detector` sees in many prepared slices: maps (n, 1, H, W), scores (n,), restored (n, 1, H, W) or None."""
    if not len(rows):
        raise ValueError("no slices to look at")
    keep_freed_memory()
    device = next(chain(detector.parameters(), detector.buffers())).device
    half = precision == "bf16"
    layout = torch.channels_last if half else torch.contiguous_format
    detector.to(memory_format=layout)  # type: ignore[call-overload]
    batch = detector.at_once(device.type)
    seen = []
    with torch.autocast(device.type, torch.bfloat16, enabled=half):
        for start in range(0, len(rows), batch):
            x = torch.from_numpy(np.array(rows[start : start + batch])).to(device)
            seen.append(detector.detect(x.contiguous(memory_format=layout)))
    maps, scores, restored = (
        [np.ascontiguousarray(value.float().cpu().numpy()) for value in values if value is not None]
        for values in zip(*((s.map, s.score, s.restored) for s in seen), strict=True)
    )
    return np.concatenate(maps), np.concatenate(scores), np.concatenate(restored) if restored else None


def case_score(slice_scores: NDArray[np.float32]) -> float:
    """A study is as abnormal as its worst slice."""
    return float(slice_scores.max())


def calibrate(
    folder: Path, data: Path, *, dataset: str = "folder", false_alarms: float | None = None, device: str = "auto"
) -> tuple[Calibration, tuple[tuple[str, str], ...]]:
    """Set the threshold of the model in `folder` from healthy images, and save it; the command of the same name.

    Args:
        data: healthy images of people the model did not learn from: a data set's calibration part, its own or the one
            that `train` divides off, or a plain folder.
        false_alarms: share of healthy cases that may be flagged; None keeps the model's, 0.05 at first.

    Returns:
        The calibration, and (file, reason) of images that could not be used.

    Raises:
        LayoutError: too few healthy people to divide, people the model learned from, or none that can be used.
        ModelError, ConfigError: see their messages.
    """
    model = Model.load(folder, device=device)
    opened = open_dataset(dataset, data)
    healthy = opened.only(label=Label.NORMAL)
    # Test cases are for measuring, and training cases are known to the model.
    cases = healthy.only(split=Split.CALIBRATION) or healthy.only(split=Split.NONE)
    if not len(cases):
        if not len(healthy.only(split=Split.TRAIN)):
            raise LayoutError(
                f"{data} is a data set with parts but without calibration/good, and has no train/good to divide. Give "
                "a plain folder of healthy images that are neither learned from nor tested on."
            )
        cases = split(opened).only(label=Label.NORMAL, split=Split.CALIBRATION)
    known = set(model.card.get("learned_from", ()))
    if again := [case.case_id for case in cases if known & marks(dataset, opened.name, case)]:
        raise LayoutError(
            f"The model learned from {len(again)} of {len(cases)} images in {data} or from others of their "
            f"patients, such as {again[0]}."
        )
    if false_alarms is None:
        false_alarms = model.calibration.false_alarms if model.calibration else FALSE_ALARMS
    calibration, failures = calibration_of(model, cases, false_alarms)
    calibrated(model, calibration, dataset, cases).save(folder)
    return calibration, failures


def calibrated(model: Model, calibration: Calibration, dataset: str, cases: Dataset) -> Model:
    """`model` with a threshold, and a card that knows whose scores set it: `cases`, read as `dataset`."""
    return replace(model, calibration=calibration, card={**model.card, "calibrated_on": sorted(people(dataset, cases))})


def people(dataset: str, cases: Dataset) -> dict[str, Case]:
    """Cases by all that tells in another data set who they are, see `marks`."""
    return {mark: case for case in cases for mark in marks(dataset, cases.name, case)}


def marks(dataset: str, name: str, case: Case) -> set[str]:
    """What tells a case in another data set: hashes of what its files hold, and of the patient's id.

    Ids count within a data set. In folders that is any folder, but the name of a file is nobody's id there.

    Args:
        dataset: its reader; `name` what that calls the data set.

    Returns:
        16 hexadecimal digits each. Who can try all ids finds an id by its hash.
    """
    found = set()
    in_folder = DATASETS[dataset] == DATASETS["folder"]
    if not in_folder or case.patient_id != case.case_id:
        patient = f"{'folder' if in_folder else name}: {case.patient_id}"
        found.add(hashlib.sha256(patient.encode()).hexdigest()[:16])
    with suppress(ImageError):  # what cannot be opened is not learned from either
        found.add(study_sha256(case.images)[:16])
    return found


def calibration_of(
    model: Model, cases: Dataset, false_alarms: float = FALSE_ALARMS
) -> tuple[Calibration, tuple[tuple[str, str], ...]]:
    """What the healthy `cases` score, the first usable case of each patient, and (file, reason) of the unusable.

    Raises:
        ConfigError: `false_alarms` is no share.
        LayoutError: none of the cases can be judged.
    """
    if not 0 < false_alarms < 1:
        raise ConfigError(f"false alarms is a share between 0 and 1, got {false_alarms}.")
    prepared = PreparedCache().prepare(cases, model.preparation, read_study, study_sha256)
    failures = prepared.failures
    if not len(prepared.rows):
        raise LayoutError(f"{cases.name}: none of {len(cases)} healthy images can be judged. {failures[:1]}")
    maps, scores, _ = detections(model.detector, prepared.rows, precision=model.precision)
    of_patient: dict[str, float] = {}
    for index in np.unique(prepared.case):
        of_patient.setdefault(cases[int(index)].patient_id, case_score(scores[prepared.case == index]))
    try:
        on_grid = threshold_grid_ra2024(maps)
    except ValueError:  # the values of this map are too large for a grid that ends below 1
        on_grid = None
    calibration = Calibration(
        scores=tuple(sorted(of_patient.values())),
        false_alarms=false_alarms,
        pixel_threshold=pixel_threshold(maps, false_alarms=false_alarms),
        grid_threshold=on_grid,
        curve_thresholds=tuple(pixel_threshold(maps, false_alarms=share) for share in OF_CURVE),
    )
    return calibration, failures


def device_of(name: str) -> torch.device:
    """The device behind a name of the command line; "auto" is CUDA where there is one.

    Raises:
        ConfigError: no such device here.
    """
    kind, _, index = name.partition(":")
    if kind not in ("auto", "cpu", "cuda") or not (index or "0").isdigit():
        raise ConfigError(f"There is no device '{name}'. Use auto, cpu, cuda, cuda:0 ...")
    there = torch.cuda.is_available()
    if kind == "cuda" and not there:
        raise ConfigError(f"device {name} was asked for, but torch sees no CUDA device here. Use --device cpu.")
    return torch.device("cuda" if kind == "auto" and there else "cpu" if kind == "auto" else name)


def halves_fast(place: torch.device) -> bool:
    """Whether products in bfloat16 are made there by the hardware; where they are imitated they are slower than any."""
    if place.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported())


def learned(detector: Detector) -> dict[str, torch.Tensor]:
    """The tensors a model consists of, contiguous, on the CPU."""
    return {k: v.detach().cpu().contiguous() for k, v in detector.learned().items()}


def versions() -> dict[str, str]:
    """Versions that can move numbers."""
    return {name: installed(name) for name in ("salus", "torch", "numpy", "scipy")}


installed = cache(version)  # every study asks, and a package's description is long to read


def sealed(about: Mapping[str, Any]) -> str:
    """JSON text that carries the SHA-256 of its own content."""
    content = json.dumps(about, sort_keys=True, allow_nan=False)
    return (
        json.dumps({**about, "sha256": hashlib.sha256(content.encode()).hexdigest()}, indent=1, allow_nan=False) + "\n"
    )


def opened(folder: Path) -> dict[str, Any]:
    """`model.json`, its format and its own hash checked.

    Raises:
        ModelError: see the message.
    """
    path = folder / "model.json"
    if not path.is_file():
        if (folder / "progress").is_dir():
            raise ModelError(f"{folder}: training has not finished. Go on with `salus train ... --resume`.")
        raise ModelError(f"{path} is missing. A model folder is what `salus train --out` wrote.")
    try:
        about = json.loads(path.read_bytes())
        claimed = about.pop("sha256")
        form = about["format"]
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{path} was altered: it is not the JSON that Salus wrote ({error}).") from None
    if isinstance(form, int) and form > FORMAT:
        raise ModelError(f"{path} has format {form}; this Salus reads up to {FORMAT}. Install a newer Salus.")
    found = hashlib.sha256(json.dumps(about, sort_keys=True, allow_nan=False).encode()).hexdigest()
    if found != claimed:
        raise ModelError(f"{path} was altered: SHA-256 of its content is {found[:12]}, it says {str(claimed)[:12]}.")
    return {**about, "sha256": claimed}

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
from dataclasses import asdict, dataclass, field
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

from salus.core.errors import ConfigError, ModelError
from salus.core.machine import keep_freed_memory
from salus.detectors import Detector, build
from salus.io.files import file_sha256, make_folder, write_whole
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
    def shortfall(self) -> str:
        """Why its threshold judges nobody; empty where it judges, or there is none."""
        return self.calibration.shortfall if self.calibration else ""

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

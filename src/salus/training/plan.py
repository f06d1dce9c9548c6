"""What decides a training: preset and settings brought together, checked, and compared with what was begun."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import ValidationError

from salus.core.errors import ConfigError, complaint, did_you_mean
from salus.core.machine import in_words, memory
from salus.detectors import ENSEMBLE, NO_METHOD, Preset, Recipe, build, detector_class
from salus.model import Model, Precision
from salus.preprocess.preparation import Preparation

RANDOM = ("weights", "teacher")  # settings that may say "random": of a trunk that nobody trained
AUTO = "auto"  # a setting `latent` that healthy images choose, see `salus.training.latent`
HELD = 3  # times what is learned, at the least: weights, gradients and a moment
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that decides a training, resolved; kept beside its progress and in the model's card."""

    detector: str
    preset: str
    settings: dict[str, Any]
    score: dict[str, Any]
    recipe: Recipe
    preparation: dict[str, Any]
    seed: int
    dataset: str = ""
    manifest_sha256: str = ""  # of every healthy case, its part and its file
    also: tuple[dict[str, str], ...] = ()  # `dataset` and `manifest_sha256` of each further set
    precision: Precision = "fp32"


def resolved(detector: str, preset: str, settings: Mapping[str, Any], seed: int) -> Plan:
    """Preset and settings brought together and checked.

    Raises:
        ConfigError: no such detector, preset or setting ("did you mean"), or a value that does not fit.
    """
    kind = detector_class(detector)
    if detector == ENSEMBLE:
        raise ConfigError(NO_METHOD)
    if preset not in kind.PRESETS:
        raise ConfigError(f"{detector} has no preset '{preset}'.{did_you_mean(preset, kind.PRESETS)}")
    chosen = kind.PRESETS[preset]
    own = {key: value for key, value in settings.items() if "." not in key}
    grouped: dict[str, dict[str, Any]] = {"recipe": {}, "score": {}, "prepare": {}}
    for path in settings.keys() - own.keys():
        group, _, key = path.partition(".")
        if group not in grouped:
            raise ConfigError(f"There is no group of settings '{group}' ({path}).{did_you_mean(group, grouped)}")
        grouped[group][key] = settings[path]
    for group, holder in (("recipe", Recipe), ("prepare", Preparation)):
        there = {f.name for f in fields(holder)} - {f.name for f in fields(kind.Config)}
        for key in own.keys() & there:
            raise ConfigError(f"{detector} has no setting '{key}'. Did you mean '{group}.{key}'?")
    if "epochs" in grouped["recipe"] and grouped["recipe"].setdefault("steps", 0):
        raise ConfigError("recipe.epochs and recipe.steps both say how long to train. Set one of them.")
    if chosen.recipe.steps and grouped["recipe"].get("steps") == 0 and "epochs" not in grouped["recipe"]:
        raise ConfigError(f"{detector} {preset} counts batches: in place of recipe.steps=0 set recipe.epochs.")
    if "size" in grouped["prepare"]:
        raise ConfigError(f"prepare.size is {detector}'s own setting 'size': --set size={grouped['prepare']['size']}.")
    if seed < 0:
        raise ConfigError(f"a seed is 0 or more, got {seed}.")
    score = score_of(chosen, settings)
    automatic = own.get("latent") == AUTO
    if automatic:
        del own["latent"]
    with torch.device("meta"):  # what has no numbers takes no memory
        config = build(detector, {**chosen.settings, **own}, score).config
    if automatic and not isinstance(getattr(config, "latent", None), int):
        raise ConfigError(f"{detector} has no code whose size could be chosen; latent=auto is for such as ae, vae, ra.")
    if automatic and getattr(config, "code", "vector") == "spatial":
        raise ConfigError("latent=auto chooses entries of a vector; a spatial code has some at each place: set it.")
    return Plan(
        detector=detector,
        preset=preset,
        settings=asdict(config) | ({"latent": AUTO} if automatic else {}),
        score=score,
        recipe=checked(Recipe, "recipe", {**asdict(chosen.recipe), **grouped["recipe"]}),
        preparation=asdict(checked(Preparation, "prepare", {**grouped["prepare"], "size": config.size})),
        seed=seed,
    )


def at_random(settings: Mapping[str, Any]) -> bool:
    """Whether a model of these settings, or one of its members, sees with a trunk that nobody trained."""
    members = settings.get("members", ())
    return any(settings.get(key) == "random" for key in RANDOM) or any(at_random(one["settings"]) for one in members)


def score_of(preset: Preset, settings: Mapping[str, Any]) -> dict[str, Any]:
    """A preset's score with what `score.*` changes; another score does not share the preset's settings."""
    changed = {key.removeprefix("score."): value for key, value in settings.items() if key.startswith("score.")}
    same = changed.get("name", preset.score.get("name")) == preset.score.get("name")
    return {**(preset.score if same else {}), **changed}


def refuse_too_large(detector: str, settings: Mapping[str, Any], score: Mapping[str, Any]) -> None:
    """Refuse what cannot fit before it is built, with gradients and a moment for what is learned.

    Raises:
        ConfigError: says what is large.
    """
    with torch.device("meta"):
        net = build(detector, settings, score)
    if complaint := net.too_large():
        raise ConfigError(f"{complaint}.")
    tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    held = 1 if torch.cuda.is_available() else HELD  # gradients and moments may lie elsewhere
    bytes_of = {key: t.numel() * t.element_size() * (held if t.requires_grad else 1) for key, t in tensors.items()}
    if (needed := sum(bytes_of.values())) <= memory():
        return
    largest = max(bytes_of, key=lambda name: bytes_of[name])
    shape = " x ".join(map(str, tensors[largest].shape))
    raise ConfigError(
        f"{detector} takes {in_words(needed)} to train, but this machine has {in_words(memory())} of memory. Set "
        f"to less what makes this so large: {largest}, {shape}."
    )


def checked(kind: type[T], group: str, values: Mapping[str, Any]) -> T:
    """`kind(**values)`, or a ConfigError that names the setting."""
    known = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise ConfigError(f"There is no setting '{group}.{key}'.{did_you_mean(key, known, f'{group}.')}")
    try:
        return kind(**values)
    except ValidationError as error:
        # A complaint about several settings together begins with none of their names.
        joint = "." if error.errors()[0]["loc"] else ": "
        raise ConfigError(f"{group}{joint}{complaint(error)}.") from None


def refuse_another(out: Path, plan: Plan) -> None:
    """Whether what lies in `out` may be gone on with.

    Raises:
        ConfigError: what is there was trained otherwise or on other images.
    """
    finished = out / "model.json"
    there = (
        Model.load(out).card["plan"] if finished.is_file() else json.loads((out / "progress" / "plan.json").read_text())
    )
    # Older plans know of no further sets and count no steps.
    there = {"also": [], **there, "recipe": {"steps": 0, **there["recipe"]}}
    mine = json.loads(json.dumps(asdict(plan)))
    for one in (there, mine):
        if one["recipe"]["steps"]:
            del one["recipe"]["epochs"]  # follow from the images
    if different := sorted(key for key in mine if there.get(key) != mine[key]):
        begun = ", ".join(map(called, different))
        raise ConfigError(f"{out} was begun with {begun}. Use the same data and settings or another --out.")


def called(key: str) -> str:
    """A part of a plan in a sentence for people."""
    told = {
        "settings": "other settings",
        "manifest_sha256": "other images or parts",
        "dataset": "another reader",
        "also": "other further data sets",
    }
    return told.get(key, f"another {key}")

"""What a benchmark compares: SUITE.yaml, read and checked before anything runs.

    datasets:
      rsna: {reader: rsna, path: rsna}                       # path below --data
      brain: {reader: fastmri, path: fastmri, also: [{reader: ixi, path: ixi}]}   # learned from, too
      heads: {phantom: {train: 60, test_normal: 20}}         # drawn, settings of `write_phantom`
      unlabelled: {reader: rsna, path: rsna, painted: true}  # judged by lesions on held-out healthy people
    methods:
      ra: {}                                                 # the method's name, preset fast
      ae-4: {detector: ae, preset: paper, set: {latent: 4}}  # as `salus train ae --preset paper --set latent=4`
      both: {of: [ra, ae-4/residual]}                        # as `salus combine`, of what the suite trained
    scores: [own, {name: residual}]                          # of every method that restores
    seeds: [0, 1, 2]

Every method learns every data set with every seed: that is a cell, and all its scores share its one training. What is
`of` others is made of their cells.
"""

import inspect
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import field, replace
from itertools import product
from pathlib import Path, PurePath
from typing import Any, Literal, NamedTuple

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from salus.benchmark.published import published
from salus.core.errors import ConfigError, WeightsError, complaint, did_you_mean
from salus.datasets import DATASETS
from salus.datasets.phantom import check_phantom, write_phantom
from salus.detectors import ENSEMBLE, Restorer, detector_class
from salus.preprocess.preparation import Preparation
from salus.scores import build_score
from salus.training.plan import at_random, checked, resolved, score_of

OWN = "own"  # the score of a method's preset
YAML = {"tuple_type": "Needs a list", "dataclass_type": "Needs settings", "dict_type": "Needs settings"}
DRAWN = {key: one.default for key, one in inspect.signature(write_phantom).parameters.items() if key != "root"}
SEEDS = 2**63  # a seed is below: a whole number of 64 bits with a sign

Score = Mapping[str, Any]  # `name` and the score's settings


@dataclass(frozen=True, kw_only=True, config={"extra": "forbid"})
class Further:
    """A further data set to learn from; `reader` and `path` as of `Data`."""

    path: str
    reader: str = "folder"


@dataclass(frozen=True, kw_only=True, config={"extra": "forbid"})
class Data:
    """A data set of a suite: one on disk, or a phantom's settings.

    Attributes:
        reader: a key of `DATASETS`.
        path: below the folder of all data sets.
        phantom: settings of `write_phantom`, in place of the two above.
        painted: whether healthy people who are held out are the test, with blobs, or `foreign` pieces, painted on them,
            see `salus.datasets.painted`; its own stays shut.
        also: further data sets whose healthy cases are learned from, as `salus train --also`.
        prepare: how its images are prepared for every method, as `prepare.*` of `salus train`.
    """

    reader: str = "folder"
    path: str = ""
    phantom: dict[str, int | float] | None = None
    painted: Literal[False, True, "foreign"] = False
    also: tuple[Further, ...] = ()
    prepare: dict[str, Any] = field(default_factory=dict)

    @property
    def made(self) -> str:
        """The reader of what the suite itself makes of it; empty where its cases are taken as they are."""
        return "phantom" if self.phantom is not None else "painted" if self.painted else ""


@dataclass(frozen=True, kw_only=True, config={"extra": "forbid"})
class Method:
    """A method of a suite; what is not said is what `salus train` would take.

    Attributes:
        detector: key of `DETECTORS`; the entry's own name if empty.
        preset, set: as `--preset` and `--set`.
        of: in place of all these, methods of the suite whose models judge together, or METHOD/SCORE of one.
        seeds: of the members; empty for the cell's own.
    """

    detector: str = ""
    preset: str = "fast"
    set: dict[str, Any] = field(default_factory=dict)
    of: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True, config={"extra": "forbid"})
class Suite:
    """All that is compared, by the names that tables use."""

    datasets: dict[str, Data]
    methods: dict[str, Method]
    scores: tuple[Literal["own"] | dict[str, Any], ...] = ("own",)
    seeds: tuple[int, ...] = (0,)
    published: tuple[str, ...] = ()  # tables to show beside, see `salus.benchmark.published`

    @property
    def cells(self) -> list["Cell"]:
        """Cells in the order they begin: whole data sets first, so that early tables already compare methods.

        What is made of the trainings of several seeds is there once, beside the first.
        """
        return [
            Cell(data, seed, method)
            for data, seed, method in product(self.datasets, self.seeds, self.methods)
            if not self.methods[method].seeds or seed == self.seeds[0]
        ]

    def detector_of(self, method: str) -> str:
        """Key of `DETECTORS`, or `ENSEMBLE`."""
        entry = self.methods[method]
        return ENSEMBLE if entry.of else entry.detector or method

    def members(self, cell: "Cell") -> list[tuple["Cell", str]]:
        """What an ensemble is made of: cells, and which of their scores; empty for what is trained."""
        entry = self.methods[cell.method]
        named = [name.partition("/") for name in entry.of]
        return [
            (Cell(cell.data, seed, method), score or OWN)
            for seed in entry.seeds or (cell.seed,)
            for method, _, score in named
        ]

    @property
    def floors(self) -> set[str]:
        """The methods that are there to be beaten: they are not ranked among the others."""
        return {name for name in self.methods if detector_class(self.detector_of(name)).FAMILY == "floor"}

    def scores_of(self, method: str) -> dict[str, Score]:
        """The scores of a method by name; {} stands for its own, and one that equals it is not there twice."""
        entry, kind = self.methods[method], detector_class(self.detector_of(method))
        if not issubclass(kind, Restorer):
            return {OWN: {}}
        own = OWN in self.scores and {"name": "residual", **score_of(kind.PRESETS[entry.preset], entry.set)}
        return {
            called(score): {} if isinstance(score, str) else score
            for score in self.scores
            if isinstance(score, str) or score != own
        }


class Cell(NamedTuple):
    """One training and all that is made of it."""

    data: str
    seed: int
    method: str

    @property
    def place(self) -> PurePath:
        """Its folder, below the benchmark's."""
        return PurePath("cells", self.data, self.method, f"seed{self.seed}")

    def __str__(self) -> str:
        return f"{self.method} on {self.data}, seed {self.seed}"


def called(score: str | Score) -> str:
    """'own', or the score's name with its settings: 'smoothed-sigma-4'."""
    if isinstance(score, str):
        return score
    settings = (f"{key}-{value}" for key, value in sorted(score.items()) if key != "name")
    return "-".join([str(score["name"]), *settings])


class Loader(yaml.SafeLoader):
    """As safe, but a key that is there twice is refused: the first would vanish."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        keys: list[tuple[str, Any]] = []
        for key, _ in node.value:
            if (key.tag, key.value) in keys:
                raise yaml.YAMLError(f"line {key.start_mark.line + 1}: '{key.value}' is there twice; keep one of them")
            keys.append((key.tag, key.value))
        return node


def read_suite(path: Path, preset: str | None = None) -> Suite:
    """The suite in a YAML file, with every name and setting in it checked.

    Args:
        preset: of every method, in place of its own: `tiny` tries a long suite out.

    Raises:
        ConfigError: it cannot be read, or something in it does not exist or does not fit; the message says where.
    """
    try:
        content = Loader(path.read_text(encoding="utf-8")).get_single_data()
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} is no suite: it has datasets, methods, scores and seeds.")
    for group in ("datasets", "methods"):
        if isinstance(content.get(group), dict):  # `ra:` with nothing behind it is all defaults
            content[group] = {name: {} if entry is None else entry for name, entry in content[group].items()}
    try:
        suite = TypeAdapter(Suite).validate_python(content)
        for name, method in suite.methods.items():
            if not method.of and "of" in content["methods"][name]:
                raise ConfigError(f"methods.{name}.of is empty; an ensemble has two members or more.")
        if preset is not None:
            methods = {
                name: method if method.of else replace(method, preset=preset) for name, method in suite.methods.items()
            }
            suite = replace(suite, methods=methods)
        check(suite)
    except ValidationError as error:
        raise ConfigError(f"{path}: {complaint_at(error)}.") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return suite


def check(suite: Suite) -> None:
    """Whether everything named exists and fits.

    Raises:
        ConfigError: see its message.
    """
    for group in ("datasets", "methods", "scores", "seeds"):
        if not getattr(suite, group):
            raise ConfigError(f"{group} is empty; name at least one.")
    for name in (*suite.datasets, *suite.methods):
        if PurePath(name).name != name or name.startswith("."):
            raise ConfigError(f"'{name}' becomes the name of a folder: use letters, digits, '-' and '_'.")
    if wrong := [seed for seed in suite.seeds if not 0 <= seed < SEEDS]:
        raise ConfigError(f"seeds: a seed is a whole number from 0 to {SEEDS - 1}, got {wrong[0]}.")
    for group, named in (("seeds", [str(seed) for seed in suite.seeds]), ("published", suite.published)):
        if repeated := sorted({one for one in named if named.count(one) > 1}):
            raise ConfigError(f"{group} names {repeated[0]} twice.")
    for name, data in suite.datasets.items():
        check_data(name, data)
    untrained: set[str] = set()
    ensembles = [name for name, method in suite.methods.items() if method.of]
    for name, method in suite.methods.items():
        if method.of:
            continue
        if method.seeds:
            raise ConfigError(f"methods.{name}: seeds are those of an ensemble's members; the suite's are for all.")
        try:
            with suppress(WeightsError):  # its rows will say so, and the others go on
                if at_random(resolved(method.detector or name, method.preset, method.set, 0).settings):
                    untrained.add(name)
        except ConfigError as error:
            raise ConfigError(f"methods.{name}: {error}") from error
    check_scores(suite.scores)
    for name in ensembles:
        check_members(suite, name)
        of = {member.partition("/")[0] for member in suite.methods[name].of}
        if of & untrained and of - untrained:
            raise ConfigError(f"methods.{name}: {min(of & untrained)} sees with a random trunk, {min(of - untrained)} "
                              "does not; they cannot judge together.")  # fmt: skip
    untrained -= suite.floors
    if untrained and (others := suite.methods.keys() - untrained - suite.floors - set(ensembles)):
        raise ConfigError(
            f"methods.{min(untrained)} sees with a random trunk, {min(others)} does not: give random trunks a suite of "
            "their own, or compare with the floor random-features."
        )
    for table in suite.published:
        published(table)


def check_data(name: str, data: Data) -> None:
    """Whether a data set can be read or drawn, and prepared, by what is said of it.

    Raises:
        ConfigError: see its message.
    """
    for place, reader in ((name, data.reader), *((f"{name}.also", one.reader) for one in data.also)):
        if reader not in DATASETS:
            raise ConfigError(f"datasets.{place}: there is no reader '{reader}'.{did_you_mean(reader, DATASETS)}")
    if not all(one.path for one in data.also):
        raise ConfigError(f"datasets.{name}.also needs a path below --data.")
    if (data.phantom is None) == (data.path == ""):
        raise ConfigError(f"datasets.{name} needs a path below --data, or settings of a phantom.")
    if data.phantom is not None and data.painted:
        raise ConfigError(f"datasets.{name}: a phantom has findings of its own; leave painted out.")
    if data.also and data.painted:
        raise ConfigError(f"datasets.{name}: a painted test knows the people of one data set; leave also out.")
    if data.phantom is not None:
        check_drawn(f"datasets.{name}.phantom", data.phantom)
    if "size" in data.prepare:
        raise ConfigError(f"datasets.{name}.prepare: size is a setting of each method; set it there.")
    checked(Preparation, f"datasets.{name}.prepare", data.prepare)


def check_drawn(place: str, settings: Mapping[str, int | float]) -> None:
    """Whether `write_phantom` would draw it.

    Raises:
        ConfigError: see its message.
    """
    for key, value in settings.items():
        if key not in DRAWN:
            raise ConfigError(f"{place}: there is no setting '{key}'.{did_you_mean(key, DRAWN)}")
        if isinstance(DRAWN[key], int) and not isinstance(value, int):
            raise ConfigError(f"{place}: {key} is a whole number, got {value}.")
    try:
        check_phantom(**{**DRAWN, **settings})
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from error


def check_members(suite: Suite, name: str) -> None:
    """Whether what an ensemble is made of is in the suite.

    Raises:
        ConfigError: see its message.
    """
    entry = suite.methods[name]
    if entry.detector or entry.set or entry.preset != Method.preset:
        raise ConfigError(f"methods.{name}: an ensemble is of other methods; detector, preset and set are theirs.")
    trained = [key for key, method in suite.methods.items() if not method.of]
    for member in entry.of:
        method, slash, score = member.partition("/")
        if method not in trained:
            raise ConfigError(
                f"methods.{name}.of: no method '{method}' is trained here.{did_you_mean(method, trained)}"
            )
        if slash and score not in (scores := [OWN, *suite.scores_of(method)]):
            raise ConfigError(f"methods.{name}.of: {method} has no score '{score}' here.{did_you_mean(score, scores)}")
    if missing := sorted(set(entry.seeds) - set(suite.seeds)):
        raise ConfigError(f"methods.{name}.seeds: nothing is trained with seed {missing[0]}.")
    members = suite.members(Cell("", suite.seeds[0], name))
    if len(set(members)) < max(2, len(members)):
        raise ConfigError(f"methods.{name}: an ensemble has two members or more, none of them twice.")


def check_scores(scores: Sequence[str | Score]) -> None:
    """Whether each score exists with its settings, once.

    Raises:
        ConfigError: see its message.
    """
    for score in scores:
        if not isinstance(score, str):
            if "name" not in score:
                raise ConfigError(f"a score has a name and settings, got {dict(score)}.")
            with suppress(WeightsError):
                build_score(**score)
    names = [called(score) for score in scores]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"scores names {repeated[0]} twice.")


def complaint_at(error: ValidationError) -> str:
    """The first complaint, with the whole place of it: 'methods.ra.preste: ...'."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    if place.endswith(".literal['own']"):
        place = place.removesuffix(".literal['own']")
        return f"{place}: Needs own, or a score with its settings such as {{name: residual}}, got {first['input']!r}"
    if first["type"] == "unexpected_keyword_argument":
        return f"there is no setting '{place}'"
    # In words of the file rather than of Python.
    said = YAML.get(first["type"], first["msg"])
    return complaint(error) if not place else f"{place}: {said}, got {first['input']!r}"

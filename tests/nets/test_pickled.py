import collections
import io
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from salus.core.errors import WeightsError
from salus.nets.pickled import read_arrays, read_tensors


class Intruder:
    """Runs a command when unpickled by Python; must not run here."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self):
        return os.system, (f"touch {self.proof}",)


@pytest.fixture
def state():
    generator = torch.Generator().manual_seed(0)
    base = torch.rand(6, 4, generator=generator)
    return collections.OrderedDict(
        {
            "features.0.weight": base,
            "features.0.bias": base[2:, 1],  # a view into the same storage
            "features.1.turned": base.t(),
            "features.2.half": base.half(),
            "features.2.brain": base.bfloat16(),
            "features.3.count": torch.tensor(7),
            "features.4.mask": base > 0.5,
            "features.5.empty": torch.zeros(0, 3),
            "classifier.0.weight": torch.nn.Parameter(base.double()),
        }
    )


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old"])
def test_reads_what_torch_saved(tmp_path, state, zipped):
    torch.save(state, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    found = read_tensors(tmp_path / "x.pth")
    assert list(found) == list(state)
    for name, value in state.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)
    assert list(read_tensors(tmp_path / "x.pth", "classifier.")) == ["classifier.0.weight"]


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old"])
def test_reads_the_state_of_a_module(tmp_path, zipped):
    module = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    torch.save(module.state_dict(), tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    found = read_tensors(tmp_path / "x.pth")
    assert all(torch.equal(found[name], value) for name, value in module.state_dict().items())
    assert len(found) == 7


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_reads_nested_arrays(protocol):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    tree = {"net": {"kernel": array, "turned": np.asfortranarray(array), "big": array.astype(">f8")}}
    data = pickle.dumps(tree, protocol)
    if protocol == 2:  # bytes go through a function there, which is not on the list
        with pytest.raises(WeightsError, match=r"_codecs\.encode"):
            read_arrays(data)
    elif protocol == 5:  # likewise: numpy's _frombuffer
        with pytest.raises(WeightsError, match="_frombuffer"):
            read_arrays(data)
    else:
        found = read_arrays(data)
        assert all(np.array_equal(found["net"][key], tree["net"][key]) for key in tree["net"])


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_foreign_global_is_refused_and_not_run(tmp_path, protocol):
    proof = tmp_path / "proof"
    with pytest.raises(WeightsError, match=r"refused: it asks for (posix|nt)\.system"):
        read_arrays(pickle.dumps({"a": Intruder(proof)}, protocol))
    assert not proof.exists()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old"])
def test_a_foreign_global_in_a_checkpoint_is_refused_and_not_run(tmp_path, state, zipped):
    state["features.9.bias"] = Intruder(tmp_path / "proof")
    torch.save(state, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match=r"x\.pth: refused: it asks for (posix|nt)\.system"):
        read_tensors(tmp_path / "x.pth")
    assert not (tmp_path / "proof").exists()


def test_an_allowed_name_cannot_be_called_unless_it_is_a_function():
    with pytest.raises(WeightsError, match="no function of plain weights"):
        read_arrays(b"cnumpy\nndarray\n)R.")


@pytest.mark.parametrize("data", [b"", b"\x80\x04", b"}", b"u.", b"\x80\x04].", b"}q\x01}q\x02h\x09.", b"(.", b"\xff"])
def test_damaged_pickles_end_in_a_clear_error(data):
    with pytest.raises(WeightsError):
        read_arrays(data)


def test_a_dict_that_holds_itself_ends_in_a_clear_error():
    loop: dict[str, object] = {}
    loop["me"] = loop
    with pytest.raises(WeightsError, match="recursion"):
        read_arrays(pickle.dumps(loop, 4))


def test_arrays_of_objects_are_refused():
    with pytest.raises(WeightsError, match="plain numbers"):
        read_arrays(pickle.dumps({"a": np.array([None, {}], dtype=object)}, 4))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old"])
def test_a_cut_file_is_an_error_at_any_length(tmp_path, state, zipped):
    torch.save(state, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    whole = (tmp_path / "x.pth").read_bytes()
    for length in range(0, len(whole) - 1, 97):
        (tmp_path / "x.pth").write_bytes(whole[:length])
        with pytest.raises(WeightsError):
            read_tensors(tmp_path / "x.pth")


def test_a_tensor_that_reaches_past_its_storage_is_an_error(tmp_path, state):
    torch.save({"a": torch.zeros(4)}, tmp_path / "x.pth")
    with zipfile.ZipFile(tmp_path / "x.pth") as archive, zipfile.ZipFile(tmp_path / "y.pth", "w") as forged:
        for name in archive.namelist():
            data = archive.read(name)
            forged.writestr(name, data.replace(b"K\x04\x85", b"K\x05\x85") if name.endswith("data.pkl") else data)
    with pytest.raises(WeightsError, match="past the end"):
        read_tensors(tmp_path / "y.pth")


def test_a_compressed_archive_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
    with pytest.raises(WeightsError, match="compressed"):
        read_tensors(tmp_path / "x.pth")


def test_what_torch_itself_reads_safely_is_the_same(tmp_path, state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    (tmp_path / "x.pth").write_bytes(buffer.getvalue())
    buffer.seek(0)
    theirs = torch.load(buffer, weights_only=True)
    ours = read_tensors(tmp_path / "x.pth")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)

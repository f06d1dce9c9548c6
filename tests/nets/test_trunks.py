import pytest
import torch

from salus.core.errors import ConfigError, WeightsError
from salus.nets.trunks import TRUNKS, build_trunk

CHANNELS = {
    "alexnet": (64, 192, 384, 256, 256),
    "vgg16": (64, 128, 256, 512, 512),
    "squeezenet": (64, 128, 256, 384, 384, 512, 512),
    "efficientnet_lite0": (40, 112, 1280),
}
PARAMETERS = {
    "alexnet": 2_469_696,
    "vgg16": 14_714_688,
    "squeezenet": 722_496,
    "efficientnet_lite0": 4_652_008 - 1000 * 1281,  # published for the whole; without the classifier
}


@pytest.mark.parametrize("name", TRUNKS)
def test_taps_have_the_channels_of_the_paper(name):
    seen = build_trunk(name)(torch.rand(2, 3, 64, 64))
    assert tuple(tap.shape[1] for tap in seen) == CHANNELS[name]
    after_relu = seen[-1:] if name == "efficientnet_lite0" else seen  # its blocks end without one
    assert all(tap.min() >= 0 for tap in after_relu)


@pytest.mark.parametrize("name", TRUNKS)
def test_has_as_many_parameters_as_published(name):
    assert sum(parameter.numel() for parameter in build_trunk(name).parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", TRUNKS)
def test_stays_frozen_and_in_evaluation_mode(name):
    around = torch.nn.Sequential(build_trunk(name)).train()
    assert not around[0].training
    assert not any(module.training for module in around[0].modules())
    assert not any(parameter.requires_grad for parameter in around.parameters())


def test_passes_a_gradient_to_the_image():
    x = torch.rand(1, 3, 64, 64, requires_grad=True)
    build_trunk("squeezenet")(x)[-1].sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_taps_can_be_the_pools():
    seen = build_trunk("vgg16", taps=(9, 16, 23, 30))(torch.rand(1, 3, 64, 64))
    assert [tuple(tap.shape[1:]) for tap in seen] == [(128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 2, 2)]


@pytest.mark.parametrize(("name", "least"), [("alexnet", 31), ("vgg16", 16), ("squeezenet", 17)])
def test_says_so_when_an_image_is_too_small(name, least):
    trunk = build_trunk(name)
    trunk(torch.rand(1, 3, least, least))
    said = rf"{least - 1} x {least + 9} pixels are too few for this trunk, it takes {least} x {least}$"
    with pytest.raises(ValueError, match=said):
        trunk(torch.rand(1, 3, least - 1, least + 9))


def test_weights_must_fit():
    trunk = build_trunk("squeezenet")
    weights = dict(trunk.state_dict())
    build_trunk("squeezenet").fill(weights | {"lin0": torch.zeros(64)})
    with pytest.raises(WeightsError, match=r"features\.3\.squeeze\.bias.*found nothing"):
        trunk.fill({name: value for name, value in weights.items() if name != "features.3.squeeze.bias"})
    with pytest.raises(WeightsError, match=r"shape \(64, 3, 3, 3\), found \(1,\)"):
        trunk.fill(weights | {"features.0.weight": torch.zeros(1)})


def test_unknown_names_are_refused():
    with pytest.raises(ConfigError, match="Did you mean 'vgg16'"):
        build_trunk("vgg61")
    with pytest.raises(ConfigError, match="layers 0 to 12"):
        build_trunk("alexnet", taps=(13,))

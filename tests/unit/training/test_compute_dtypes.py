"""What layers computed in is found, and compared with what was asked for."""

import pytest
import torch
from torch import nn

from gear_dist.errors import ConfigError
from gear_dist.training.compute_dtypes import ComputeDtypes, check_compute_dtypes
from gear_dist.training.engine import autocast_forward
from refusals import refused


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))


@pytest.mark.parametrize("autocast", [True, False])
def test_the_first_layers_of_each_kind_are_looked_at(autocast: bool) -> None:
    module = network()
    if autocast:
        autocast_forward(module, torch.device("cpu"))
    dtypes = ComputeDtypes(module)
    assert dtypes.take() == {}, "no forward yet"
    module(torch.zeros(1, 3, 8, 8))
    dtype = "bfloat16" if autocast else "float32"
    assert dtypes.take() == {"convolution": dtype, "linear": dtype}
    assert dtypes.take() == {}
    assert not any(m._forward_hooks for m in module.modules())


def test_a_network_without_a_kind_is_silent_about_it() -> None:
    module = nn.Sequential(nn.Linear(2, 2))
    dtypes = ComputeDtypes(module)
    module(torch.zeros(1, 2))
    assert dtypes.take() == {"linear": "float32"}


def test_another_dtype_than_asked_for_ends_the_run() -> None:
    check_compute_dtypes("bf16", {"tokenizer": {"convolution": "bfloat16"}, "generator": {}})
    check_compute_dtypes("fp32", {"tokenizer": {"convolution": "float32"}})
    with refused(ConfigError, "engine.precision=bf16", "generator", "linear", "float32"):
        check_compute_dtypes("bf16", {"generator": {"linear": "float32"}})

"""engine.deterministic on CUDA, as far as a CPU can tell: what a step calls, and what is set."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gear_dist.config.loading import load_config
from gear_dist.distributed.device import choose_algorithms
from gear_dist.planning import trace_step
from gear_dist.planning.hardware import make_rates
from gear_dist.planning.trace_step import count_stage

CONFIGS = Path(__file__).parents[3] / "configs"
# What torch 2.13 refuses on CUDA under `use_deterministic_algorithms` (its documentation), among
# operations that a network like ours could call.
REFUSED = {
    "adaptive_avg_pool2d_backward",
    "_adaptive_avg_pool2d_backward",
    "adaptive_max_pool2d_backward",
    "bincount",
    "cumsum",
    "grid_sampler_2d_backward",
    "histc",
    "max_unpool2d",
    "median",
    "nll_loss2d_forward",
    "put_",
    "reflection_pad2d_backward",
    "upsample_bicubic2d_backward",
    "upsample_bilinear2d_backward",
    "upsample_linear1d_backward",
}


class _Names(TorchDispatchMode):
    """Notes the operations that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("stage", ["tokenizer", "joint", "generator"])
@pytest.mark.parametrize("family", ["vq", "lfq", "ibq"])
def test_no_operation_of_a_step_is_refused(
    family: str, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [CONFIGS / f"{part}.yaml" for part in ("stage/joint", f"tokenizer/{family}")]
    config = load_config(files, ["data.image_size=32", "engine.precision=bf16"])
    names, micro_batch = _Names(), trace_step.train_micro_batch

    def watched(*args: Any) -> Any:
        with names:
            return micro_batch(*args)

    monkeypatch.setattr(trace_step, "train_micro_batch", watched)
    count_stage(stage, config, images=2, on_cuda=True, rates=make_rates({}))
    assert "convolution_backward" in names.found or stage == "generator"
    assert not names.found & REFUSED


def test_algorithms_follow_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    choose_algorithms(deterministic=False)
    assert torch.backends.cudnn.benchmark
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    try:
        choose_algorithms(deterministic=True)
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.backends.cudnn.benchmark
        assert os.environ.pop("CUBLAS_WORKSPACE_CONFIG") == ":4096:8"
    finally:
        choose_algorithms(deterministic=False)
        torch.backends.cudnn.benchmark = False

"""What training does on CUDA alone, on imitations: memory formats, copies, order of freeing."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from gear_dist.config.loading import load_config
from gear_dist.distributed import device as device_module
from gear_dist.errors import ConfigError
from gear_dist.training import trainer as trainer_module
from gear_dist.training.networks import Networks
from gear_dist.training.stages import Stage
from gear_dist.training.train_step import TrainStep
from gear_dist.training.trainer import Trainer, open_loader
from refusals import refused

CUDA = torch.device("cuda", 0)


class Pinned:
    """Pixels that are asked to go to a device, and stay."""

    def __init__(self) -> None:
        self.asked: list[tuple[torch.device, bool]] = []

    def to(self, device: torch.device, non_blocking: bool = False) -> torch.Tensor:
        self.asked.append((device, non_blocking))
        return torch.zeros(2, 3, 8, 8, dtype=torch.uint8)


def test_images_are_copied_without_waiting_and_channels_last() -> None:
    step: Any = TrainStep.__new__(TrainStep)
    step._device, step._config = CUDA, load_config(None, [])
    batch = SimpleNamespace(
        images=Pinned(), labels=torch.zeros(2, dtype=torch.long), cfg_dropout_rand=torch.zeros(2)
    )
    micro_batch = step._to_device(batch, SimpleNamespace(name="tokenizer"))
    assert batch.images.asked == [(CUDA, True)]
    assert micro_batch.images.is_contiguous(memory_format=torch.channels_last)
    assert not micro_batch.images.is_contiguous()


def test_frozen_networks_are_channels_last_where_that_is_fast(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def weight() -> torch.Tensor:
        return device_module.place(nn.Conv2d(3, 4, 3), torch.device("cpu")).weight

    assert weight().is_contiguous()
    monkeypatch.setattr(device_module, "CHANNELS_LAST_DEVICES", ("cpu",))
    assert weight().is_contiguous(memory_format=torch.channels_last)
    assert not weight().is_contiguous()


@pytest.mark.parametrize(("device", "pinned"), [(CUDA, True), (torch.device("cpu"), False)])
def test_batches_for_a_gpu_are_pinned(
    monkeypatch: pytest.MonkeyPatch, device: torch.device, pinned: bool
) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(trainer_module, "build_loader", lambda *_, **options: given.update(options))
    monkeypatch.setattr(trainer_module.collectives, "world_size", lambda: 1)
    monkeypatch.setattr(trainer_module.collectives, "rank", lambda: 0)
    open_loader(load_config(None, []), device)
    assert given["pin_memory"] is pinned


def test_a_run_ends_where_a_network_computes_in_another_dtype() -> None:
    networks: Any = Networks.__new__(Networks)
    networks.precision = "bf16"
    taken = {"linear": "float32"}
    networks.engines = {
        "generator": SimpleNamespace(compute_dtypes=SimpleNamespace(take=lambda: taken))
    }
    with refused(ConfigError, "generator", "float32"):
        networks.take_compute_dtypes()


def stub_trainer(events: list[str]) -> Any:
    trainer: Any = Trainer.__new__(Trainer)
    trainer.networks = SimpleNamespace(
        averaged_state_dicts=dict, close=lambda: events.append("close")
    )
    trainer.recorder = SimpleNamespace(
        step=2, publish=lambda *_: None, rewind=lambda: None, say=lambda *_: None
    )
    trainer._warn_about_skipped_checkpoints = lambda: None
    trainer._report = lambda _: None
    return trainer


def test_a_stages_networks_go_before_the_next_ones_come() -> None:
    events: list[str] = []
    trainer = stub_trainer(events)
    first, second = Stage("tokenizer", 0, 2, 1.0), Stage("joint", 2, 4, 1.0)
    trainer.collapse = SimpleNamespace(end_stage=lambda: None)
    trainer._stage_at = lambda _: second
    trainer._build_networks = lambda *_: events.append("build")
    trainer.save = lambda: events.append("save")
    trainer._end_stage(first)
    assert events == ["close", "build", "save"]


def test_a_rollback_frees_the_networks_before_it_loads_others() -> None:
    events: list[str] = []
    trainer = stub_trainer(events)
    trainer.saver = SimpleNamespace(wait=lambda: None)
    trainer.guard = SimpleNamespace(num_consecutive=3, last_nonfinite="loss", num_skipped=3)
    trainer.checkpoints = SimpleNamespace(open_newest=lambda: SimpleNamespace(folder="step-2"))
    trainer._rolled_back = False
    trainer._start_or_load = lambda _: events.append("load")
    trainer._roll_back()
    assert events == ["close", "load"]

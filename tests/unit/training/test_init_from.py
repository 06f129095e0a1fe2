"""`stages.init_from`: what a run takes over from an imported model or another run."""

import json
from pathlib import Path

import pytest
import torch

import public_files as files
from gear_dist.config.loading import config_yaml, load_config
from gear_dist.config.schema import RunConfig
from gear_dist.errors import ConfigError, DataError
from gear_dist.inference.weights import join_states, save_run_weights, split_states
from gear_dist.interop.import_public import import_checkpoints
from gear_dist.training.init_from import load_init_from, open_init_from
from gear_dist.training.networks import load_network
from refusals import refused

FAMILIES = ("vq", "lfq", "ibq")


@pytest.fixture(params=FAMILIES)
def imported(request, tmp_path) -> tuple[Path, files.State]:
    state = files.reference_state(f"tokenizer_{request.param}")
    import_checkpoints([str(files.gear_file(tmp_path / "gear.pt", state))], tmp_path / "model")
    return tmp_path / "model", state


def start(folder: Path, *words: str) -> RunConfig:
    return load_config(None, [f"stages.init_from={folder}", *words])


def test_one_setting_brings_architecture_and_weights(imported, tmp_path):
    folder, state = imported
    config = start(folder)
    assert config.tokenizer.codebook_size == 64
    assert (config.discriminator.width, config.discriminator.num_layers) == (8, 2)
    states = load_init_from(config)
    assert states.keys() == {"tokenizer", "discriminator"}
    assert all(torch.equal(states["tokenizer"][key], value) for key, value in state.items())
    assert all(key.startswith("discriminator.main.") for key in states["discriminator"])
    (tmp_path / "saved.yaml").write_text(config_yaml(config))
    (folder / "config.json").unlink()
    assert load_config(tmp_path / "saved.yaml") == config, "a run outlives what it started from"


def test_the_image_size_comes_along_unless_it_is_given(imported):
    folder, _ = imported
    node = json.loads((folder / "config.json").read_text())
    node["data"]["image_size"] = 384
    (folder / "config.json").write_text(json.dumps(node))
    assert start(folder).data.image_size == 384
    assert start(folder, "data.image_size=512").data.image_size == 512


def test_losses_of_the_tokenizer_stay_the_users(imported):
    folder, _ = imported
    words = ["tokenizer.entropy_weight=0.3", "discriminator.start_step=9"]
    config = start(folder, *words, "discriminator.lecam_weight=0.1")
    assert open_init_from(config) is not None
    assert (config.tokenizer.entropy_weight, config.discriminator.start_step) == (0.3, 9)
    assert config.discriminator.lecam_weight == 0.1


def test_another_architecture_is_refused_by_its_settings(imported):
    folder, _ = imported
    there = start(folder).tokenizer.num_res_blocks
    with refused(ConfigError, f"stages.init_from={folder}", "tokenizer.num_res_blocks=3", there):
        open_init_from(start(folder, "tokenizer.num_res_blocks=3"))
    with refused(ConfigError, f"stages.init_from={folder}", "discriminator.norm=group", "batch"):
        open_init_from(start(folder, "discriminator.norm=group", "discriminator.norm_groups=4"))


def test_networks_can_be_left_out(imported):
    folder, _ = imported
    config = start(folder, "stages.init_networks=[tokenizer]", "discriminator.width=16")
    assert load_init_from(config).keys() == {"tokenizer"}
    with refused(ConfigError, "stages.init_networks=['tokeniser']", "tokenizer", "projectors"):
        start(folder, "stages.init_networks=[tokeniser]")


def test_a_folder_without_a_model_is_refused(tmp_path):
    with refused(DataError, f"stages.init_from={tmp_path / 'absent'}", "no such"):
        load_init_from(start(tmp_path / "absent"))
    with refused(DataError, tmp_path, "config.yaml", "config.json", "gear-dist import"):
        load_init_from(start(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with refused(DataError, tmp_path, "no tokenizer"):
        load_init_from(start(tmp_path))


def test_damaged_weights_are_refused(imported):
    folder, _ = imported
    (folder / "tokenizer.safetensors").write_bytes(b"cut")
    with refused(DataError, folder / "tokenizer.safetensors", "readable"):
        load_init_from(start(folder))


def states_of_a_run() -> dict:
    return {
        "tokenizer": {"a": torch.zeros(1)},
        "discriminator": {"discriminator.b": torch.ones(2)},
        "generator": {"generator.c": torch.ones(3), "projectors.0.0.weight": torch.ones(4)},
    }


def test_published_networks_join_to_what_they_were_split_from():
    states = states_of_a_run()
    published = split_states(states)
    assert {name: list(state) for name, state in published.items()} == {
        "tokenizer": ["a"],
        "discriminator": ["b"],
        "generator": ["c"],
        "projectors": ["0.0.weight"],
    }
    assert join_states(published) == states


def test_a_run_publishes_each_network(tmp_path):
    save_run_weights(tmp_path, states_of_a_run(), {"step": 3})
    names = sorted(path.stem for path in tmp_path.glob("*.safetensors"))
    assert names == ["discriminator", "generator", "projectors", "tokenizer"]


class Heads(torch.nn.Module):
    """A generator with as many projectors as asked."""

    def __init__(self, width: int, count: int = 1):
        super().__init__()
        self.generator = torch.nn.Linear(2, 2)
        self.projectors = torch.nn.ModuleList(torch.nn.Linear(2, width) for _ in range(count))


def test_projectors_are_new_where_there_are_none_and_dropped_where_no_teacher_is():
    given = Heads(3)
    bare = {k: v for k, v in given.state_dict().items() if k.startswith("generator.")}
    for target, state in ((Heads(3), bare), (Heads(3, count=0), given.state_dict())):
        projectors = [p.clone() for p in target.projectors.parameters()]
        load_network(target, state)
        assert torch.equal(target.generator.weight, given.generator.weight)
        assert all(map(torch.equal, projectors, target.projectors.parameters()))
    with refused(ConfigError, "projectors", "alignment.projector_width", "stages.init_networks"):
        load_network(Heads(4), given.state_dict())

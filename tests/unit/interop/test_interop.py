"""Public checkpoints in and out: what is taken, what is left, what is refused."""

import argparse
import json
import os
import pathlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import public_files as files
from gear_dist.cli.main import main
from gear_dist.config.loading import load_config
from gear_dist.config.models import DiscriminatorConfig
from gear_dist.config.schema import RunConfig
from gear_dist.errors import ConfigError, DataError
from gear_dist.inference.model_folder import open_model
from gear_dist.inference.pipeline import GearPipeline
from gear_dist.interop.export import export_model
from gear_dist.interop.import_public import PUBLISHED_TEXT_TOKENIZER, import_checkpoints
from gear_dist.interop.infer_config import infer_settings
from gear_dist.interop.model_card import export_card
from gear_dist.models.discriminator.patchgan import PatchDiscriminator
from gear_dist.models.generator import build_aligned_generator, build_generator
from gear_dist.models.tokenizers import build_tokenizer
from gear_dist.training.init_from import load_init_from, open_init_from
from gear_dist.training.networks import load_network
from public_layouts import GENERATORS, TOKENIZERS, read_layout
from reference_numbers import assert_close, read_reference
from refusals import refused

FAMILIES = ("vq", "lfq", "ibq")
GENERATOR_WORDS = ["generator.num_heads=4", "generator.tap_layer=2"]
CPU = torch.device("cpu")


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture
def vq() -> files.State:
    return files.reference_state("tokenizer_vq")


def wrapped(wrapping: str, family: str, folder: Path) -> tuple[Path, files.State]:
    state = files.reference_state(f"tokenizer_{family}")
    path = folder / "checkpoint.pt"
    if wrapping == "gear":
        return files.gear_file(path, state), state
    if wrapping == "lightning":
        return files.lightning_file(path, state), state
    if wrapping == "compiled":
        torch.save({"model": {f"_orig_mod.{key}": value for key, value in state.items()}}, path)
    elif wrapping.endswith("."):
        torch.save({"state_dict": {wrapping + key: value for key, value in state.items()}}, path)
    elif wrapping == "safetensors":
        path = path.with_suffix(".safetensors")
        save_file(state, path)
    else:
        torch.save(state, path)
    return path, state


WRAPPINGS = ["gear", "lightning", "compiled", "module.", "_orig_mod.module.", "module._orig_mod."]
WRAPPINGS += ["_orig_mod.module._orig_mod.", "bare", "safetensors"]


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_tokenizer_comes_in_whole_and_reconstructs(family, wrapping, tmp_path):
    """Bit for bit under every wrapping, and its numbers are the public code's."""
    path, state = wrapped(wrapping, family, tmp_path)
    import_checkpoints([str(path)], tmp_path / "model")
    model = open_model(tmp_path / "model")
    assert model.config.tokenizer.quantizer == family
    assert equal(load_file(model.weights["tokenizer"]), state)
    _, numbers = read_reference(f"tokenizer_{family}")
    pair = GearPipeline.load(model, CPU)
    assert torch.equal(pair.tokenizer.encode(numbers["x"]), numbers["indices"])
    decoded = pair.tokenizer.decode(numbers["indices"])
    assert_close(decoded, numbers["decoded_from_indices"], 1e-5, "decoded")


@pytest.mark.parametrize("layout", ["gear", "public"])
@pytest.mark.parametrize("family", FAMILIES)
def test_out_and_in_again_is_bit_for_bit(family, layout, tmp_path):
    path, state = wrapped("bare", family, tmp_path)
    import_checkpoints([str(path)], tmp_path / "model")
    [written] = export_model(open_model(tmp_path / "model"), tmp_path / "out", layout)
    if layout == "public":
        import_checkpoints([str(written)], tmp_path / "again")
        wrapper = torch.load(written, weights_only=True)
        assert wrapper.keys() >= {"vq_ema", {"vq": "model"}.get(family, "state_dict")}
        assert written.stat().st_size < 1.2 * path.stat().st_size, "the copies share their storage"
    back = open_model(tmp_path / ("again" if layout == "public" else "out"))
    assert back.config.tokenizer == open_model(tmp_path / "model").config.tokenizer
    assert equal(load_file(back.weights["tokenizer"]), state)
    assert "## Architecture" in (tmp_path / "out" / "README.md").read_text()


def test_the_live_copy_is_taken_where_it_is_asked_for(vq, tmp_path):
    path = files.gear_file(tmp_path / "gear.pt", vq)
    import_checkpoints([str(path)], tmp_path / "live", copy="live")
    taken = load_file(tmp_path / "live" / "tokenizer.safetensors")
    assert equal(taken, files.shifted(vq))
    lfq = files.reference_state("tokenizer_lfq")
    path = files.lightning_file(tmp_path / "lfq.ckpt", lfq)
    import_checkpoints([str(path)], tmp_path / "lfq", copy="live")
    assert equal(load_file(tmp_path / "lfq" / "tokenizer.safetensors"), files.shifted(lfq))


def test_the_report_says_what_was_used_dropped_and_missing(vq, tmp_path, capsys):
    path = files.gear_file(tmp_path / "gear.pt", vq)
    assert main(["import", str(path), "--out", str(tmp_path / "model")]) == 0
    printed = capsys.readouterr().out
    for line in (
        "used: tokenizer (",
        f"vq_ema of {path})",
        "used: discriminator (",
        f"dropped: vq of {path}: another copy of the tokenizer",
        f"dropped: opt_vq of {path}: optimizer state",
        "missing: generator, projectors",
    ):
        assert line in printed
    report = json.loads((tmp_path / "model" / "import.json").read_text())
    assert report["missing"] == ["generator", "projectors"]
    assert {item["name"] for item in report["dropped"][str(path)]} == {
        "vq",
        "opt_vq",
        "args",
        "steps",
    }
    assert "tokenizer: `vq_ema`" in (tmp_path / "model" / "README.md").read_text()


def joint_words() -> list[str]:
    config, _ = read_reference("joint_step")
    return [f"generator.num_heads={config['generator']['n_head']}", "data.image_size=16"]


@pytest.mark.parametrize("heads", ["projs.", ""], ids=["as GEAR names them", "bare"])
def test_a_joint_checkpoint_gives_every_network_that_a_later_stage_starts_from(heads, tmp_path):
    """GEAR's stage 1: averages of tokenizer and generator; live discriminator and projectors."""
    path = files.gear_joint_file(tmp_path / "gear.pt", heads)
    report = import_checkpoints([str(path)], tmp_path / "model", overrides=joint_words())
    assert [item.key for item in report.used] == ["vq_ema", "discriminator", "ema", "projectors"]
    assert report.missing == []
    assert {item.name for item in report.dropped[str(path)]} == {
        *("vq", "ar", "opt_ar", "sched_ar", "args", "steps")
    }
    average, live = files.joint_states("before"), files.joint_states("after")
    model = open_model(tmp_path / "model")
    for name, state in (average | {"discriminator": live["discriminator"]}).items():
        if name != "projector":
            assert equal(load_file(model.weights[name]), state), name
    start = load_config(None, [f"stages.init_from={tmp_path / 'model'}", "data.image_size=16"])
    torch.manual_seed(0)
    generator = build_aligned_generator(build_generator(start), start.alignment, [20])
    load_network(generator, load_init_from(start)["generator"])
    assert equal(generator.generator.state_dict(), average["generator"])
    assert equal(generator.projectors[0].state_dict(), live["projector"])


def test_projectors_go_where_their_generator_goes(tmp_path):
    """Not without it, not to a run without alignment, not to another width; out and in again."""
    path = files.gear_joint_file(tmp_path / "gear.pt")
    import_checkpoints([str(path)], tmp_path / "model", overrides=joint_words())

    def start(*words: str):
        return load_config(None, [f"stages.init_from={tmp_path / 'model'}", *words])

    assert {"generator", "projectors"} <= open_init_from(start()).weights.keys()
    alone = start("stages.init_networks=[tokenizer,projectors]")
    without = start("alignment.soft_weight=0", "alignment.hard_weight=0")
    for config in (alone, without):
        assert "projectors" not in open_init_from(config).weights
    there = start().alignment.projector_width
    with refused(ConfigError, "stages.init_from", "alignment.projector_width=7", there):
        open_init_from(start("alignment.projector_width=7"))
    config = start()
    other_teacher = build_aligned_generator(build_generator(config), config.alignment, [21])
    with refused(ConfigError, "projectors", "teacher", "stages.init_networks"):
        load_network(other_teacher, load_init_from(start())["generator"])
    written = export_model(open_model(tmp_path / "model"), tmp_path / "out")
    assert "projectors.safetensors" in {path.name for path in written}
    again = load_config(None, [f"stages.init_from={tmp_path / 'out'}"])
    assert again.alignment.projector_width == start().alignment.projector_width


def test_projectors_that_belong_to_nothing_are_dropped_or_refused(vq, tmp_path):
    content = torch.load(files.gear_joint_file(tmp_path / "gear.pt"), weights_only=False)
    heads = {"projectors": content["projectors"]}
    torch.save({"model": vq} | heads, tmp_path / "tokenizer.pt")
    report = import_checkpoints([str(tmp_path / "tokenizer.pt")], tmp_path / "model")
    [dropped] = report.dropped[str(tmp_path / "tokenizer.pt")]
    assert dropped == ("projectors", "alignment heads without their generator")
    assert "projectors" in report.missing
    torch.save(heads, tmp_path / "heads.pt")
    with refused(DataError, tmp_path / "heads.pt", "no generator"):
        import_checkpoints([str(tmp_path / "heads.pt")], tmp_path / "none")
    heads["projectors"] = {k: v[..., :-1] for k, v in heads["projectors"].items()}
    torch.save(content | heads, tmp_path / "narrow.pt")
    words = joint_words()
    with refused(DataError, tmp_path / "narrow.pt", "projectors", "shape"):
        import_checkpoints([str(tmp_path / "narrow.pt")], tmp_path / "none", overrides=words)
    heads["projectors"] = {"proj.weight": torch.zeros(2, 2)}
    other = str(tmp_path / "other.pt")
    torch.save(content | heads, other)
    report = import_checkpoints([other], tmp_path / "none", overrides=words)
    reason = "alignment heads of an unknown form, which a run creates itself"
    assert ("projectors", reason) in report.dropped[other]


def test_a_discriminator_with_group_norm_is_told_by_its_keys():
    config = DiscriminatorConfig(width=32, num_layers=2, norm="group")
    state = PatchDiscriminator(config).state_dict()
    words = [f"discriminator.{k}={v}" for k, v in infer_settings("discriminator", state).items()]
    assert load_config(None, words).discriminator == config


def test_tokenizer_and_generator_of_two_files_sample(vq, tmp_path, capsys):
    """LlamaGen's pair: the extra keys dropped, the image size read from the rotary table."""
    generator = files.reference_state("generator_c2i")
    config, _ = read_reference("generator_c2i")
    assert config["vocab_size"] == len(vq["quantize.embedding.weight"])
    first = files.llamagen_tokenizer_file(tmp_path / "vq_ds16_c2i.pt", vq)
    grid, head = round(config["block_size"] ** 0.5), config["dim"] // config["n_head"]
    second = files.llamagen_generator_file(tmp_path / "c2i.pt", generator, grid, head)
    out = tmp_path / "model"
    words = ["--set", f"generator.num_heads={config['n_head']}", "generator.tap_layer=2"]
    assert main(["import", str(first), str(second), "--out", str(out), *words]) == 0
    printed = capsys.readouterr().out
    assert "quantize.codebook_used" in printed
    assert "freqs_cis" in printed
    model = open_model(out)
    assert model.config.grid_size == grid
    assert equal(load_file(model.weights["generator"]), generator)
    assert main(["sample", str(out), "--count", "2", "--classes", "0,1"]) == 0
    assert (out / "samples.png").is_file()


@pytest.mark.parametrize("name", TOKENIZERS)
def test_published_tokenizers_are_recognised_by_their_shapes(name):
    state = {key: torch.empty(s, device="meta") for key, s in read_layout(name)[1].items()}
    words = [f"tokenizer.{k}={v}" for k, v in infer_settings("tokenizer", state).items()]
    found = load_config(None, words).tokenizer
    with torch.device("meta"):
        keys = build_tokenizer(found).state_dict()
    assert {key: value.shape for key, value in keys.items()} == {
        k: v.shape for k, v in state.items()
    }
    assert found == TOKENIZERS[name]


@pytest.mark.parametrize("name", GENERATORS)
def test_published_generators_are_recognised_by_their_shapes(name):
    state = {key: torch.empty(s, device="meta") for key, s in read_layout(name)[1].items()}
    words = [f"generator.{k}={v}" for k, v in infer_settings("generator", state).items()]
    assert load_config(None, words).generator == GENERATORS[name]


def without(key):
    return lambda state: {name: value for name, value in state.items() if name != key}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("decoder.conv_out.bias"), ["1 missing (decoder.conv_out.bias)"]),
        (without("quant_conv.weight"), ["1 missing (quant_conv.weight)"]),
        (without("encoder.conv_out.weight"), ["encoder.conv_out.weight is missing"]),
        (lambda s: s | {"decoder.extra": torch.zeros(1)}, ["1 not expected (decoder.extra)"]),
        (
            lambda s: s | {"post_quant_conv.weight": torch.zeros(2, 2, 1, 1)},
            ["1 of another shape", "post_quant_conv.weight is (2, 2, 1, 1) and should be"],
        ),
        (without("encoder.conv_in.weight"), ["no tokenizer, generator or discriminator found"]),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(vq, tmp_path, change, words):
    torch.save({"model": change(vq)}, tmp_path / "bad.pt")
    with refused(DataError, tmp_path / "bad.pt", *words):
        import_checkpoints([str(tmp_path / "bad.pt")], tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_weights_that_are_no_numbers_are_refused(vq, tmp_path, value, capsys):
    name = "decoder.conv_in.weight"
    bad = vq | {name: vq[name].clone()}
    bad[name][0, 0, 0, 0] = float(value)
    torch.save({"model": bad}, tmp_path / "bad.pt")
    assert main(["import", str(tmp_path / "bad.pt"), "--out", str(tmp_path / "model")]) == 3
    error = capsys.readouterr().err
    assert "bad.pt" in error
    assert f"({name})" in error
    assert not (tmp_path / "model").exists()


def test_an_incomplete_average_is_refused(tmp_path):
    lfq = files.reference_state("tokenizer_lfq")
    average = without("decoder.conv_in.bias")(lfq)
    path = files.lightning_file(tmp_path / "lfq.ckpt", lfq, average)
    with refused(DataError, path, "1 tensors", "decoder.conv_in.bias", "--weights live"):
        import_checkpoints([str(path)], tmp_path / "model")
    import_checkpoints([str(path)], tmp_path / "model", copy="live")


def test_a_pickle_that_needs_more_than_tensors_is_refused_with_the_reason(vq, tmp_path, capsys):
    """Zip and legacy format; a Namespace of options is no reason."""
    torch.save({"model": vq, "where": pathlib.PurePosixPath("x")}, tmp_path / "new.pt")
    torch.save(
        {"model": vq, "where": pathlib.PurePosixPath("x")},
        tmp_path / "old.pt",
        _use_new_zipfile_serialization=False,
    )
    for name in ("new.pt", "old.pt"):
        command = ["import", str(tmp_path / name), "--out", str(tmp_path / "model")]
        assert main(command) == 3
        error = capsys.readouterr().err
        assert "PurePosixPath" in error
        assert "could run code: refused" in error
    torch.save({"model": vq, "args": argparse.Namespace(a=1)}, tmp_path / "options.pt")
    import_checkpoints([str(tmp_path / "options.pt")], tmp_path / "model")


def test_a_pickle_that_would_run_code_runs_none(vq, tmp_path):
    torch.save({"model": vq, "extra": MakesFolder(tmp_path / "made")}, tmp_path / "bad.pt")
    with refused(DataError, tmp_path / "bad.pt", "posix.mkdir", "code"):
        import_checkpoints([str(tmp_path / "bad.pt")], tmp_path / "model")
    assert not (tmp_path / "made").exists()


LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"


class MakesFolder:
    """Unpickled by a careless reader, it makes a folder."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("cut.pt", b"PK\x03\x04 cut short", "readable"),
        ("text.pt", b"hello", "readable"),
        ("words.pt", b"hello world, this is a text\n", "text"),
        ("lfs.pt", LFS_POINTER, "git lfs pull"),
        ("lfs.safetensors", LFS_POINTER, "git lfs pull"),
        ("login.pt", b"\n<!DOCTYPE html><html><title>Sign in", "web page"),
        ("packed.pt", b"\x1f\x8b\x08\0" + bytes(20), "archive"),
        ("nothing.pt", b"", "empty"),
        ("cut.safetensors", b"\x10\x00", "readable safetensors"),
    ],
)
def test_a_damaged_file_is_named(name, content, words, tmp_path):
    (tmp_path / name).write_bytes(content)
    with refused(DataError, tmp_path / name, words) as caught:
        import_checkpoints([str(tmp_path / name)], tmp_path / "model")
    assert "weights_only" not in str(caught.value), "torch's advice would run what the file holds"


def test_pieces_that_do_not_belong_together(vq, tmp_path):
    one = files.llamagen_tokenizer_file(tmp_path / "one.pt", vq)
    with refused(ConfigError, one, "tokenizer", "folders"):
        import_checkpoints([str(one), str(one)], tmp_path / "model")
    config = load_config(None, ["tokenizer.codebook_size=16", "generator.num_layers=4"])
    torch.save(build_generator(config).state_dict(), tmp_path / "other.pt")
    with refused(DataError, tmp_path / "other.pt", "16 codes", one, 64):
        import_checkpoints([str(one), str(tmp_path / "other.pt")], tmp_path / "model")
    torch.save([1, 2], tmp_path / "list.pt")
    with refused(DataError, tmp_path / "list.pt", "list"):
        import_checkpoints([str(tmp_path / "list.pt")], tmp_path / "model")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("x")
    with refused(ConfigError, f"--out {tmp_path / 'full'}", "empty"):
        import_checkpoints([str(one)], tmp_path / "full")


def text_generator_file(path, mask="prefix", *, options=True):
    """As the published one: a dictionary of options, and progress."""
    state = files.reference_state(f"generator_t2i_{mask}")
    args = {"text_attn": mask, "text_max_len": 5, "text_encoder": "/of/theirs/Qwen3-0.6B"}
    args = {"args": args} if options else {}
    torch.save({"ema": state, **args, "steps": 7}, path)
    return state


@pytest.mark.parametrize("mask", ["causal", "prefix"])
def test_a_text_to_image_generator_in_and_out(mask, tmp_path):
    state = text_generator_file(tmp_path / "t2i.pt", mask)
    heads = ["generator.num_heads=4", "data.image_size=64"]
    report = import_checkpoints([str(tmp_path / "t2i.pt")], tmp_path / "model", overrides=heads)
    config = open_model(tmp_path / "model").config
    generator, encoder = config.generator, config.text_encoder
    assert (encoder.path, encoder.max_tokens, encoder.padding) == ("Qwen/Qwen3-0.6B", 5, "right")
    assert (generator.condition, generator.text_width) == ("text", 24)
    assert (generator.text_mask, generator.text_rotary) == (mask, "zeros")
    assert (generator.num_layers, generator.num_double_layers, generator.tap_layer) == (6, 2, 2)
    text = "\n".join(report.lines())
    assert "text_rotary=zeros" in text
    assert PUBLISHED_TEXT_TOKENIZER in text
    [written] = export_model(open_model(tmp_path / "model"), tmp_path / "public", "public")
    content = torch.load(written, weights_only=True)
    assert content["args"]["text_attn"] == mask
    assert content["ema"].keys() == state.keys()
    assert all(torch.equal(content["ema"][key], state[key]) for key in state)
    import_checkpoints([str(written)], tmp_path / "again", overrides=heads)
    assert open_model(tmp_path / "again").config == open_model(tmp_path / "model").config


def test_a_text_to_image_generator_without_options_is_causal(tmp_path):
    text_generator_file(tmp_path / "t2i.pt", options=False)
    overrides = ["generator.num_heads=4", "data.image_size=64"]
    import_checkpoints([str(tmp_path / "t2i.pt")], tmp_path / "model", overrides=overrides)
    assert open_model(tmp_path / "model").config.generator.text_mask == "causal"


def test_a_text_to_image_generator_of_other_shapes_is_refused(tmp_path):
    state = text_generator_file(tmp_path / "t2i.pt")
    del state["layers.1.attention.wqkv_text.weight"]
    torch.save({"ema": state}, tmp_path / "t2i.pt")
    with refused(DataError, tmp_path / "t2i.pt", "layers.1.attention.wqkv_text.weight"):
        import_checkpoints(
            [str(tmp_path / "t2i.pt")], tmp_path / "model", overrides=["generator.num_heads=4"]
        )


def test_a_hub_file_comes_from_the_cache_when_offline(vq, tmp_path, monkeypatch):
    """The cache's own layout, written by hand: no network."""
    repository = tmp_path / "hub" / "models--someone--tokenizers"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    files.llamagen_tokenizer_file(snapshot / "vq.pt", vq)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    import_checkpoints(["someone/tokenizers/vq.pt"], tmp_path / "model")
    assert equal(load_file(tmp_path / "model" / "tokenizer.safetensors"), vq)
    with refused(DataError, "someone/tokenizers/other.pt", "hub", "connection"):
        import_checkpoints(["someone/tokenizers/other.pt"], tmp_path / "other")
    with refused(ConfigError, "nowhere.pt", "OWNER/REPOSITORY/FILE", ".safetensors"):
        import_checkpoints(["nowhere.pt"], tmp_path / "other")


def test_keys_that_are_no_names_are_not_weights(tmp_path):
    torch.save({"model": {1: torch.zeros(2)}}, tmp_path / "odd.pt")
    with pytest.raises(DataError):
        import_checkpoints([str(tmp_path / "odd.pt")], tmp_path / "model")


def test_whole_numbers_are_not_trained_weights(tmp_path):
    state = files.reference_state("tokenizer_vq")
    state["encoder.conv_in.weight"] = state["encoder.conv_in.weight"].to(torch.int32)
    path = files.gear_file(tmp_path / "gear.pt", state)
    with refused(DataError, path, "encoder.conv_in.weight", "quantised"):
        import_checkpoints([str(path)], tmp_path / "model")


def test_a_card_has_the_licences_of_the_training_images() -> None:
    options = {"step": "1", "data": {}, "evaluation": None}
    card = export_card("m", RunConfig(), ["tokenizer"], licenses=[("CC0|x", 1200)], **options)
    assert "| CC0/x | 1,200 |" in card
    assert "Not stated" in export_card("m", RunConfig(), ["tokenizer"], **options)

"""`gear-dist plan`: what is counted against what was counted by others, and the command."""

import json
from pathlib import Path

import pytest
import torch

from gear_dist.cli import main as cli
from gear_dist.config.loading import load_config
from gear_dist.config.text import TextEncoderConfig
from gear_dist.errors import ConfigError
from gear_dist.models.generator.rotary import rotary_table
from gear_dist.models.teachers import load_teachers, teacher_class
from gear_dist.models.text_encoders import load_text_encoder, measure_text_encoder
from gear_dist.planning.fake_models import build_skeleton, count_networks, fake_tensors
from gear_dist.planning.hardware import PEAKS, make_rates
from gear_dist.planning.plan import plan_costs
from gear_dist.planning.text import format_plan
from gear_dist.planning.trace_step import count_stage
from refusals import refused
from tiny_encoders import run_tower, save_encoder
from tiny_text_encoders import save_text_encoder

CONFIGS = Path(__file__).parents[3] / "configs"
PROJECTOR = 2 * 256 / 1e9  # GFLOP an image and parameter


def recipe(parts, *overrides):
    files = [CONFIGS / f"{part}.yaml" for part in parts.split()]
    return load_config(files, ["engine.precision=bf16", *overrides])


def gflops(config, stage="joint"):
    """GFLOP of each pass for one image, by the reference kernels, which recompute nothing."""
    cost = count_stage(stage, config, images=1, on_cuda=True, rates=make_rates({}))
    return {name: found.flops / 1e9 for name, found in cost.passes.items()}


@pytest.mark.parametrize(
    ("size", "generator", "soft"), [("b", 50, 21), ("l", 166, 61), ("xl", 385, 136)]
)
def test_arithmetic_equals_what_was_counted_of_the_published_networks(size, generator, soft):
    """Counted by hand for the issue: no attention in the generator, no projector."""
    config = recipe(f"stage/joint generator/{size}", "engine.kernels=reference")
    found = gflops(config)
    width, layers = config.generator.width, config.generator.num_layers
    projector = PROJECTOR * 2048 * (width + 2048 + 768)
    attention = 4 * 256**2 * width / 1e9  # a layer, causal counted whole
    assert found["tokenizer forward"] == pytest.approx(138 + 253, rel=0.01)
    assert found["lpips forward"] == pytest.approx(80, rel=0.01)
    assert found["teacher forward"] == pytest.approx(46, rel=0.01)
    frozen = found["discriminator frozen forward"]
    assert frozen + found["discriminator forward"] == pytest.approx(19, rel=0.02)
    assert frozen + found["discriminator backward"] == pytest.approx(31, rel=0.02)
    expected = generator + projector + attention * layers
    assert found["generator forward"] == pytest.approx(expected, rel=0.01)
    expected = soft + projector + attention * config.generator.tap_layer
    assert found["generator frozen forward"] == pytest.approx(expected, rel=0.02)


def test_all_three_quantizers_are_planned():
    totals = {}
    for name in ("vq", "lfq", "ibq"):
        stages = ("stages.tokenizer.steps=1", "stages.generator.steps=1")
        config = recipe(f"stage/joint tokenizer/{name}", "data.image_size=64", *stages)
        plan = plan_costs(config, world_size=256, rates=make_rates({}), on_cuda=True)
        assert [stage.stage for stage in plan.stages] == ["tokenizer", "joint", "generator"]
        totals[name] = plan.stages[1].cost.total.flops
        assert all(stage.time.apart_s > 0 for stage in plan.stages)
    assert totals["ibq"] > totals["lfq"] > totals["vq"]


def test_counting_leaves_nothing_fake_behind():
    config = load_config(CONFIGS / "tiny.yaml", ["engine.precision=fp32"])
    count_stage("joint", config, images=1, on_cuda=False, rates=make_rates({}))
    table = rotary_table(config.grid_size, 32, torch.device("cpu"))
    assert type(table) is torch.Tensor
    assert table[1:].norm() > 0


def test_activations_grow_with_the_batch_and_shrink_by_checkpointing():
    def kept(images, *overrides):
        config = recipe("tiny", *overrides)
        cost = count_stage("joint", config, images=images, on_cuda=True, rates=make_rates({}))
        return {name: found.kept for name, found in cost.activations.items()}, cost.total.flops

    (one, _), (two, flops), (three, _) = kept(1), kept(2), kept(3)
    for name in one:
        more = two[name] - one[name]
        assert three[name] - two[name] == pytest.approx(more, rel=1e-3), name
        assert more > one[name] / 2, name
    saving, more = kept(2, "tokenizer.activation_checkpointing=true")
    assert saving["tokenizer"] < two["tokenizer"] / 1.5
    assert saving["generator"] == two["generator"]
    assert more > flops
    saving, _ = kept(2, "generator.activation_checkpointing=true")
    assert saving["generator"] < two["generator"] / 1.5


def test_communication_follows_the_stage_and_the_accumulation():
    def sent(*overrides, world_size=8):
        config = recipe("stage/joint", "engine.global_batch=64", *overrides)
        plan = plan_costs(config, world_size=world_size, rates=make_rates({}), on_cuda=True)
        return sum(item.sent_bytes(world_size) for item in plan.stages[0].communication)

    accumulated = "engine.accumulation=4"
    one = sent("engine.zero_stage=1")
    assert sent("engine.zero_stage=1", accumulated) < 1.01 * one, "reduced once a step"
    assert sent("engine.zero_stage=2", accumulated) > 2.5 * sent("engine.zero_stage=2")
    assert sent("engine.zero_stage=1", world_size=1) == 0


def test_group_norm_communicates_nothing():
    options = ("discriminator.norm=group", "discriminator.norm_groups=4")

    def norms(*overrides):
        config = recipe("tiny tiny/warm-up", *overrides)
        [stage] = plan_costs(config, world_size=2, rates=make_rates({}), on_cuda=True).stages
        return [item for item in stage.communication if item.what == "batch norm"]

    assert norms() != []
    assert norms(*options, "discriminator.lecam_weight=0.1") == []


def test_given_rates_replace_assumptions():
    given = make_rates({"network": 7.0, "bf16": 100.0}, gpus_per_node=4)
    assert given.network == 7e9
    assert given.bf16 == 1e14
    assert [n for n in given.notes if "as given" in n] == [
        "--tflops 100 TFLOP/s: as given",
        "--network 7 GB/s: as given",
    ]
    assert sum("an assumption" in note for note in given.notes) == len(PEAKS) - 2
    assert given.link(4) == given.node_network > given.link(5) == 7e9


def test_slower_hardware_takes_longer():
    config = load_config(CONFIGS / "tiny.yaml", [])
    quick, slow = (
        plan_costs(config, world_size=8, rates=make_rates(given), on_cuda=True).stages[1].time
        for given in ({}, {"memory": 33.5, "node_network": 4.5})
    )
    assert slow.compute_s > 10 * quick.compute_s
    assert slow.communication_s == pytest.approx(70 * quick.communication_s)
    assert slow.overlapped_s == max(slow.compute_s + slow.optimizer_s, slow.communication_s)


def run_cli(capsys, *words):
    code = cli.main(["plan", str(CONFIGS / "tiny.yaml"), *words])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_table_says_what_is_assumed(capsys):
    code, out, _ = run_cli(capsys, "--gpus", "2", "engine.zero_stage=2", "--network", "10")
    assert code == 0
    for words in (
        "Nothing here is measured",
        "--tflops 494.5 TFLOP/s: 50% of 989",
        "--network 10 GB/s: as given",
        "Stage tokenizer, 40 steps",
        "Stage generator, 20 steps",
        "gradients, every micro-batch",
        "Checkpoint: ",
        "Data: ",
    ):
        assert words in out, words


def test_json_has_the_same_numbers(capsys):
    code, out, _ = run_cli(capsys, "--gpus", "4", "--json")
    assert code == 0
    plan = json.loads(out)
    assert plan["world_size"] == 4
    assert plan["config"]["engine"]["precision"] == "bf16"
    joint = plan["stages"][1]
    assert joint["memory"]["rows"][0]["part"] == "tokenizer"
    assert joint["cost"]["passes"]["tokenizer forward"]["flops"] > 0
    assert joint["time"]["apart_s"] >= joint["time"]["overlapped_s"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpus", "3"], "engine.global_batch=8 is not divisible by run.workers"),
        (["--gpus", "0"], "--gpus 0 is too small"),
        (["--tflops", "-1"], "--tflops -1 is too small"),
        (["--gpus-per-node", "0"], "--gpus-per-node 0 is too small"),
        (["--image-kb", "0"], "--image-kb 0 is too small"),
        (
            ["stages.tokenizer.steps=0", "stages.joint.steps=0", "stages.generator.steps=0"],
            "stages: all have 0 steps",
        ),
        (["engine.zero_stage=0", "engine.optimizer_offload=cpu"], "engine.optimizer_offload=cpu"),
    ],
)
def test_mistakes_are_one_line(capsys, words, message):
    code, _, err = run_cli(capsys, *words)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


def test_an_unknown_teacher_is_named(tmp_path):
    config = recipe("stage/joint", f"teacher.path={tmp_path}")
    known = ("hub", "facebook/dinov2-small", "facebook/dinov2-giant")
    with refused(ConfigError, f"teacher.path={tmp_path}", "teacher.name=convnet", *known):
        count_networks(config)


@pytest.mark.parametrize(
    ("name", "path", "millions"),
    [
        ("dinov2", "facebook/dinov2-base", 86),
        ("dinov2", "facebook/dinov2-with-registers-large", 300),
        ("dinov2", "facebook/dinov2-giant", 1100),
        ("dinov3", "facebook/dinov3-vitb16-pretrain-lvd1689m", 86),
        ("siglip2", "google/siglip2-base-patch16-256", 86),
        ("siglip2", "google/siglip2-so400m-patch16-naflex", 400),
        ("clip", "openai/clip-vit-large-patch14", 304),
        ("vjepa2", "facebook/vjepa2-vitl-fpc64-256", 300),
        ("vjepa2", "facebook/vjepa2-vitg-fpc64-256", 1000),
    ],
)
def test_published_teachers_are_planned_without_the_hub(name, path, millions):
    """Their parameters, as their publishers round them."""
    words = [f"teacher.name={name}", f"teacher.path={path}", "more_teachers.b.name=convnet"]
    config = recipe("stage/joint", *words)
    with fake_tensors():
        encoder, convnet = build_skeleton(config).teachers
        with torch.autocast("cpu", torch.bfloat16):
            features = encoder(torch.zeros(2, 3, 256, 256))
        assert features.shape == (2, 256, encoder.width)
        assert sum(p.numel() for p in encoder.parameters()) / 1e6 == pytest.approx(millions, 0.05)
        assert type(convnet) is teacher_class("convnet")


def test_planning_leaves_nothing_fake_in_teachers(tmp_path):
    """The library keeps DINOv3's coordinates for the whole process."""
    made = save_encoder(tmp_path, "dinov3")
    words = ["teacher.name=dinov3", f"teacher.path={tmp_path}", "data.image_size=64"]
    config = recipe("stage/joint", *words)
    with fake_tensors():
        [teacher] = build_skeleton(config).teachers
        teacher(torch.zeros(1, 3, 64, 64))
    assert type(run_tower(made, torch.zeros(1, 3, 64, 64)).last_hidden_state) is torch.Tensor
    [teacher] = load_teachers(
        config.teachers, image_size=config.data.image_size, grid_size=config.grid_size
    )
    assert type(teacher(torch.zeros(1, 3, 64, 64))) is torch.Tensor


def test_a_known_teachers_wrong_settings_are_named_alone():
    config = recipe("stage/joint", "teacher.block=13")
    with refused(ConfigError, "teacher.block=13", "facebook/dinov2-base", "12 blocks") as caught:
        count_networks(config)
    assert "facebook/dinov2-small" not in str(caught.value)


GPUS = {"world_size": 8, "rates": make_rates({}), "on_cuda": True}
TEXT = ("generator.condition=text", "data.captions=random", "generator.text_width=2048")


def test_the_text_encoder_is_counted():
    """Parameters, bf16 weights on every worker, a pass over each caption."""
    plan = plan_costs(recipe("stage/generator", *TEXT), **GPUS)
    assert plan.counts.text_encoder == 1_720_574_976
    (stage,) = plan.stages
    rows = {row.part: row for row in stage.memory.rows}
    assert rows["text encoder (frozen)"].fixed == 2 * 1_720_574_976
    cost = stage.cost.passes["text encoder forward"]
    multiplied = 1_720_574_976 - 151_936 * 2048 - 28 * (2 * 2048 + 2 * 128) - 2048
    attention = 4 * 60 * 60 * 2048 * 28
    assert cost.flops == plan.micro_batch * (2 * 60 * multiplied + attention)
    assert cost.seconds > 0
    text = format_plan(plan)
    assert "1,720,574,976 parameters" in text
    shallow = plan_costs(recipe("stage/generator", *TEXT, "text_encoder.layers=[14]"), **GPUS)
    assert shallow.stages[0].cost.passes["text encoder forward"].flops < 0.51 * cost.flops


@pytest.mark.parametrize(
    ("setting", "note"),
    [
        ("text_encoder.name=words", "text encoder words"),
        ("data.caption_features=features", "no text encoder runs"),
        ("text_encoder.path=nobody/has-this", "sizes are unknown"),
    ],
)
def test_what_takes_no_memory_or_is_not_known_is_said(setting, note):
    plan = plan_costs(recipe("stage/generator", *TEXT, setting), **GPUS)
    assert plan.counts.text_encoder == 0
    assert "text encoder forward" not in plan.stages[0].cost.passes
    assert note in format_plan(plan)


@pytest.mark.parametrize("name", ["qwen3", "t5", "t5gemma", "clip"])
def test_measured_encoders_are_the_loaded_ones(name, tmp_path):
    save_text_encoder(name, tmp_path)
    for layers in ((0,), (2,)):
        config = TextEncoderConfig(name=name, path=str(tmp_path), layers=layers, max_tokens=48)
        with fake_tensors():
            size = measure_text_encoder(config)
        width = 16 * len(layers)
        loaded = load_text_encoder(config, width=width, device=torch.device("cpu"))
        assert size.parameters == sum(p.numel() for p in loaded.parameters())
        assert size.blocks == (3 if layers == (0,) else 2)
        assert size.attention_width == 16

"""configs/: combinations of the published parts, the tiny ones, and what `plan` makes of them.

That the networks compared with here have the published parameters: test_published_sizes.py.
"""

import dataclasses
import itertools
from pathlib import Path

import pytest
import yaml

from gear_dist.config.loading import config_yaml, load_config
from gear_dist.config.models import DiscriminatorConfig
from gear_dist.config.schema import RunConfig
from gear_dist.planning.hardware import make_rates
from gear_dist.planning.plan import plan_costs
from gear_dist.planning.text import format_plan
from public_layouts import GENERATORS, TOKENIZERS

CONFIGS = Path(__file__).parents[3] / "configs"
STAGES = {
    "warm-up": ("tokenizer", 400_000),
    "joint": ("joint", 400_000),
    "ste": ("joint", 400_000),
    "generator": ("generator", 3_600_000),
    "generator-anew": ("generator", 4_000_000),
    "llamagen-repa": ("generator", 4_000_000),
    "llamagen": ("generator", 4_000_000),
}
PUBLISHED = {
    "stage": STAGES,
    "tokenizer": {"vq": "VQ-16", "vq-8": "VQ-8", "lfq": "LFQ-16", "ibq": "IBQ-16"},
    "generator": {size: f"c2i/LlamaGen-{size.upper()}" for size in ("b", "l", "xl")},
    "image": {"256": 256, "384": 384, "512": 512},
}
TEXT = ("blip3o-60k", "demo", "gpic-1b", "tiny")
TINY = {
    "": (40, 40, 20),
    "lfq": (40, 40, 20),
    "ibq": (40, 40, 20),
    "warm-up": (40, 0, 0),
    "joint": (0, 40, 0),
    "generator": (0, 0, 20),
    "llamagen-repa": (40, 0, 20),
    "llamagen": (40, 0, 20),
    "ste": (40, 40, 20),
}
RUNNABLE = ["data.train=somewhere", "stages.init_from=elsewhere"]


def recipe(*parts: str, overrides: list[str] | None = None) -> RunConfig:
    return load_config([CONFIGS / f"{part}.yaml" for part in parts], overrides)


def steps_of(config: RunConfig) -> tuple[int, int, int]:
    stages = config.stages
    return stages.tokenizer.steps, stages.joint.steps, stages.generator.steps


def test_no_part_is_untested():
    for folder, names in {**PUBLISHED, "tiny": set(TINY) - {""}, "text": TEXT}.items():
        assert {path.stem for path in (CONFIGS / folder).iterdir()} == set(names), folder
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == {
        *("convergence", "demo", "published", "tiny")
    }


def test_parts_of_different_kinds_set_different_things():
    """So that their order does not matter, and every combination is what each part says."""
    sections = {
        folder: {
            section
            for path in (CONFIGS / folder).iterdir()
            for section in yaml.safe_load(path.read_text())
        }
        for folder in PUBLISHED
    }
    sections["stage"] |= set(yaml.safe_load((CONFIGS / "published.yaml").read_text()))
    for one, other in itertools.combinations(sections.values(), 2):
        assert not one & other


def test_combinations_are_the_published_recipes():
    """Each tokenizer with each generator at each image size, the stages in turn."""
    stages, *others = PUBLISHED.values()
    combinations = itertools.product(*others)
    for (tokenizer, generator, image), stage in zip(
        combinations, itertools.cycle(stages), strict=False
    ):
        parts = (f"stage/{stage}", f"tokenizer/{tokenizer}", f"generator/{generator}")
        config = recipe(*parts, f"image/{image}", overrides=RUNNABLE)
        config.check_trainable()
        assert config.tokenizer == TOKENIZERS[PUBLISHED["tokenizer"][tokenizer]]
        assert config.generator == GENERATORS[PUBLISHED["generator"][generator]]
        assert config.discriminator == DiscriminatorConfig(weight=0.1)
        assert config.data.image_size == int(image)
        name, steps = STAGES[stage]
        assert (config.stages.total_steps, getattr(config.stages, name).steps) == (steps, steps)
        assert (config.engine.global_batch, config.optimizer.ema_decay) == (256, 0.9999)
        assert config.alignment.soft_temperature == 0.1
        weights = (config.alignment.soft_weight, config.alignment.hard_weight)
        assert weights == ((0, 0) if stage == "llamagen" else (0.5, 0.5))
        assert (config.alignment.estimator == "straight-through") == (stage == "ste")
        assert (config.collapse.patience == 0) == (stage == "ste")
        kept = config.stages.init_networks
        assert (len(kept) == 1) == (stage in ("generator-anew", "llamagen-repa", "llamagen"))


def test_text_recipes():
    """The 1B model has the published sizes, with the caption width of Qwen3-1.7B."""
    config = recipe("text/gpic-1b", overrides=RUNNABLE)
    config.check_trainable()
    published = GENERATORS["t2i/LlamaGen-1B"]
    new = {"text_width": 2048, "text_rotary": "identity"}
    assert config.generator == dataclasses.replace(published, **new)
    assert (config.stages.total_steps, config.engine.global_batch) == (400_000, 256)
    assert config.num_label_classes is None
    recipe("text/blip3o-60k", overrides=RUNNABLE).check_trainable()
    tiny = recipe("text/tiny", overrides=RUNNABLE)
    tiny.check_trainable()
    assert steps_of(tiny) == TINY[""]


def test_plan_takes_captions():
    """No dearer than the image tokens and captions together, all through every block."""
    config = recipe("text/gpic-1b", overrides=RUNNABLE)
    plan = plan_costs(config, world_size=256, rates=make_rates({}), on_cuda=True)
    assert plan.counts.generator > 1_046_000_000
    text = format_plan(plan)
    assert "60 tokens" in text
    assert "dead" not in text
    dead = recipe("text/gpic-1b", overrides=[*RUNNABLE, "generator.text_rotary=zeros"])
    plan = plan_costs(dead, world_size=256, rates=make_rates({}), on_cuda=True)
    assert "generator.text_rotary=zeros" in format_plan(plan)


def test_a_stage_alone_is_of_the_usual_sizes():
    assert recipe("stage/joint") == recipe(
        "stage/joint", "tokenizer/vq", "generator/b", "image/256"
    )


@pytest.mark.parametrize(
    "parts",
    [
        "stage/warm-up tokenizer/ibq image/384",
        "stage/joint tokenizer/lfq generator/l image/512",
        "stage/ste tokenizer/vq generator/xl image/384",
        "stage/generator tokenizer/vq-8 generator/b",
        "stage/generator-anew tokenizer/ibq generator/xl",
        "stage/llamagen-repa tokenizer/lfq generator/b image/384",
        "stage/llamagen tokenizer/vq generator/l image/512",
    ],
)
def test_plan_takes_every_part(parts):
    """One image a GPU: each stage, tokenizer, generator and image size at least once."""
    config = recipe(*parts.split())
    plan = plan_costs(config, world_size=256, rates=make_rates({}), on_cuda=True)
    [stage] = plan.stages
    assert stage.steps == config.stages.total_steps
    assert stage.memory.total_bytes > 0
    aligned = config.alignment.enabled and config.stages.has_generator
    assert (plan.counts.teacher > 0) == aligned
    assert (plan.counts.lpips > 0) == config.stages.has_tokenizer


@pytest.mark.parametrize("part", TINY)
def test_tiny_parts(part, tmp_path):
    parts = ("tiny", f"tiny/{part}") if part else ("tiny",)
    config = recipe(*parts, overrides=RUNNABLE)
    config.check_trainable()
    assert steps_of(config) == TINY[part]
    assert config.alignment.enabled == (part != "llamagen")
    assert config.run.name == "-".join(filter(None, ("tiny", part)))
    assert config.tokenizer.quantizer == (part if part in ("lfq", "ibq") else "vq")
    (tmp_path / "saved.yaml").write_text(config_yaml(config))
    assert load_config(tmp_path / "saved.yaml") == config


@pytest.mark.parametrize("name", ["demo", "convergence"])
def test_what_make_runs(name, tmp_path):
    config = recipe(name, overrides=["data.train=somewhere"])
    config.check_trainable()
    (tmp_path / "saved.yaml").write_text(config_yaml(config))
    assert load_config(tmp_path / "saved.yaml") == config

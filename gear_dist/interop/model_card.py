"""README.md of a model folder."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from gear_dist.config.compare import flatten
from gear_dist.config.models import TeacherConfig
from gear_dist.config.schema import RunConfig

_HEAD = """---
library_name: gear-dist
pipeline_tag: unconditional-image-generation
tags: [image-tokenizer, autoregressive, gear]
---
"""


class Provenance(NamedTuple):
    """Where a network came from."""

    network: str
    source: str
    key: str


def import_card(
    name: str, config: RunConfig, origins: Sequence[Provenance], report: Sequence[str]
) -> str:
    """The card of an imported model."""
    came = [f"- {item.network}: `{item.key}` of `{item.source}`" for item in origins]
    parts = [
        f"# {name}",
        "Imported from public checkpoints by gear-dist. Their licence and their card apply.",
        *_architecture(config, [item.network for item in origins]),
        "## Origin",
        "\n".join(came),
        "## Import report",
        "```\n" + "\n".join(report) + "\n```",
        *_use(name, [item.network for item in origins]),
    ]
    return _HEAD + "\n".join(f"\n{part}" for part in parts) + "\n"


def export_card(
    name: str,
    config: RunConfig,
    networks: Sequence[str],
    *,
    step: str,
    data: Mapping[str, Any],
    evaluation: Mapping[str, Any] | None,
    licenses: Sequence[tuple[str, int]] = (),
) -> str:
    """The card of a model that this project trained or passes on."""
    stages, alignment = config.stages, config.alignment
    trained = [
        f"- steps: {step or 'not recorded'}",
        f"- stages: tokenizer {stages.tokenizer.steps}, joint {stages.joint.steps}, generator "
        f"{stages.generator.steps} steps, batch {config.engine.global_batch}",
        f"- corpus: {data.get('num_samples', 'not recorded')} images, "
        f"{len(data.get('classes', [])) or 'not recorded'} classes",
        f"- alignment: {_teachers(config.teachers.values())}, soft {alignment.soft_weight}, hard "
        f"{alignment.hard_weight}, estimator {alignment.estimator}",
    ]
    figures = [
        f"- {key}: {value:.4g}"
        for key, value in flatten(evaluation or {}).items()
        if isinstance(value, int | float)
    ]
    parts = [
        f"# {name}",
        "A visual tokenizer and, where it is there, an autoregressive generator over its codes.",
        *_architecture(config, networks),
        "## Training",
        "\n".join(trained),
        "## Evaluation",
        "\n".join(figures) or "Not evaluated.",
        "## Licence",
        *_licences(licenses),
        *_use(name, networks),
    ]
    return _HEAD + "\n".join(f"\n{part}" for part in parts) + "\n"


def _licences(licenses: Sequence[tuple[str, int]]) -> list[str]:
    """What the corpora state of the training images."""
    if not licenses:
        return ["Not stated: add that of the weights and of the corpus they were trained on."]
    rows = [f"| {name.replace('|', '/')} | {count:,} |" for name, count in licenses]
    return [
        "That of the weights is not stated: add it. The corpora state of the training images:",
        "\n".join(["| licence | images |", "|---|---|", *rows]),
        "`gear-dist stats CORPUS --attribution FILE.csv` writes licence and attribution of every "
        "image.",
    ]


def _teachers(sections: Iterable[TeacherConfig]) -> str:
    names = [teacher.name for teacher in sections]
    return f"teacher{'s' if len(names) > 1 else ''} {', '.join(names)}"


def _architecture(config: RunConfig, networks: Sequence[str]) -> list[str]:
    lines = []
    tokenizer, generator = config.tokenizer, config.generator
    if "tokenizer" in networks:
        lines.append(
            f"- tokenizer: {tokenizer.quantizer.upper()}, {tokenizer.downsampling}x "
            f"downsampling, {tokenizer.codebook_size} codes of width {tokenizer.code_width}"
        )
    if "generator" in networks:
        lines.append(
            f"- generator: {generator.num_layers} layers, width {generator.width}, "
            f"{generator.num_heads} heads, {_conditions(config)}, "
            f"{config.num_tokens} tokens an image"
        )
    lines.append(f"- images: {config.data.image_size} x {config.data.image_size} pixels")
    return ["## Architecture", "\n".join(lines)]


def _conditions(config: RunConfig) -> str:
    generator = config.generator
    if generator.condition == "class":
        return f"{generator.num_classes} classes"
    return (
        f"captions as text features of width {generator.text_width}, {generator.text_mask} text, "
        f"text rotary {generator.text_rotary}"
    )


def _use(name: str, networks: Sequence[str]) -> list[str]:
    commands = []
    if "tokenizer" in networks:
        commands += [
            f"gear-dist reconstruct {name} --images FOLDER",
            f"gear-dist tokenize {name} --images FOLDER --out INDICES",
        ]
    if {"tokenizer", "generator"} <= set(networks):
        commands.append(f"gear-dist sample {name} --classes 0,1")
    commands.append(f"gear-dist train CONFIG data.train=SHARDS stages.init_from={name}")
    return ["## Use", "```\n" + "\n".join(commands) + "\n```"]

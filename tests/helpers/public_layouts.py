"""Keys and shapes of the public checkpoints, and the configurations that have them."""

import json
from pathlib import Path

from gear_dist.config.models import GeneratorConfig, TokenizerConfig

FILE = Path(__file__).parents[1] / "reference" / "public_checkpoints.json"
TOKENIZERS = {
    "VQ-16": TokenizerConfig(),
    "VQ-8": TokenizerConfig(channel_multipliers=(1, 2, 2, 4)),
    "LFQ-16": TokenizerConfig(quantizer="lfq", code_width=14, num_res_blocks=4),
    "IBQ-16": TokenizerConfig(quantizer="ibq", code_width=256, num_res_blocks=4),
}
GENERATORS = {
    f"c2i/LlamaGen-{size}": GeneratorConfig(
        width=width, num_layers=layers, num_heads=heads, tap_layer=tap
    )
    for size, layers, width, heads, tap in (
        ("S", 12, 384, 6, 4),
        ("B", 12, 768, 12, 4),
        ("L", 24, 1024, 16, 8),
        ("XL", 36, 1280, 20, 12),
        ("XXL", 48, 1536, 24, 16),
        ("XXXL", 48, 2560, 40, 16),
    )
} | {
    "t2i/LlamaGen-1B": GeneratorConfig(
        condition="text",
        width=1440,
        num_layers=36,
        num_heads=20,
        text_width=1024,
        text_rotary="zeros",
        tap_layer=12,
    )
}


def read_layout(name: str) -> tuple[int, dict[str, tuple[int, ...]]]:
    """Parameters, and shapes by key, of a published model."""
    layout = json.loads(FILE.read_text())["layouts"][name]
    return layout["parameters"], {key: tuple(shape) for key, shape in layout["keys"].items()}

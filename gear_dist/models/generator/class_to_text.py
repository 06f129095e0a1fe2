"""A text-to-image generator that begins with the weights of a class-conditional one.

All that both have is copied: token embeddings, every block, final norm and output head. The text
streams of the double-stream blocks begin as copies of the images' streams; the caption projection
is new, and the class table is left out.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from gear_dist.config.models import GeneratorConfig
from gear_dist.models.generator.transformer import INIT_STD

CLASS_TABLE = "cls_embedding.embedding_table.weight"
_TEXT_OF = {
    "attention.wqkv.weight": "attention.wqkv_text.weight",
    "attention.wo.weight": "attention.wo_text.weight",
    "attention_norm.weight": "attention_norm_text.weight",
}
_PROJECTION = "cls_embedding.cap_proj"


def text_state(
    state: Mapping[str, Tensor], config: GeneratorConfig, seed: int
) -> dict[str, Tensor]:
    """The weights by name.

    Args:
        state: of the class-conditional generator; a text-to-image one's is given back as it is.
        config: of the text-to-image generator, whose sizes are the other's.
        seed: of the new weights.
    """
    result = dict(state)
    if result.pop(CLASS_TABLE, None) is None:
        return result
    for layer in range(config.num_double_layers):
        for image, text in _TEXT_OF.items():
            source = f"layers.{layer}.{image}"
            if source in result:  # what is missing is told where the weights are checked
                result[f"layers.{layer}.{text}"] = result[source].clone()
    random = torch.Generator().manual_seed(seed)
    for name, width in (("fc1", config.text_width), ("fc2", config.width)):
        weight = torch.empty(config.width, width).normal_(std=INIT_STD, generator=random)
        result[f"{_PROJECTION}.{name}.weight"] = weight
    return result

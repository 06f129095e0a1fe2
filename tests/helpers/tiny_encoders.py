"""Random encoders of every family that teachers come from, a few blocks small, as files hold them.

What a checkpoint of two towers is has two here: its vision tower must be found in it.
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers as hf
from torch import Tensor, nn

GRID = 4
"""Positions along a side that the models were made for."""
WIDTH = 24
NUM_REGISTERS = 3
_SIZES = {"hidden_size": WIDTH, "num_attention_heads": 2}


class TinyEncoder(NamedTuple):
    """A model as a checkpoint holds it, and the part of it that sees."""

    teacher: str
    """Its `teacher.name`."""
    patch: int
    whole: Any
    tower: Any
    num_others: int
    """Tokens before the patches', by what is known of the model, not by what the code says."""


def _dinov2(blocks: int) -> TinyEncoder:
    config = hf.Dinov2Config(
        **_SIZES, num_hidden_layers=blocks, patch_size=14, image_size=14 * GRID
    )
    model = hf.Dinov2Model(config)
    return TinyEncoder("dinov2", 14, model, model, 1)


def _dinov2_registers(blocks: int) -> TinyEncoder:
    config = hf.Dinov2WithRegistersConfig(
        **_SIZES,
        num_hidden_layers=blocks,
        patch_size=14,
        image_size=14 * GRID,
        num_register_tokens=NUM_REGISTERS,
        use_swiglu_ffn=True,  # the giant's
    )
    model = hf.Dinov2WithRegistersModel(config)
    return TinyEncoder("dinov2", 14, model, model, 1 + NUM_REGISTERS)


def _dinov3(blocks: int) -> TinyEncoder:
    config = hf.DINOv3ViTConfig(
        **_SIZES,
        num_hidden_layers=blocks,
        intermediate_size=2 * WIDTH,
        image_size=16 * GRID,
        num_register_tokens=NUM_REGISTERS,
    )
    model = hf.DINOv3ViTModel(config)
    return TinyEncoder("dinov3", 16, model, model, 1 + NUM_REGISTERS)


def _vision(blocks: int, **more: int) -> dict[str, int]:
    return {**_SIZES, "num_hidden_layers": blocks, "intermediate_size": 2 * WIDTH, **more}


def _text() -> dict[str, int]:
    return {**_vision(1), "vocab_size": 8, "max_position_embeddings": 4}


def _siglip2(blocks: int) -> TinyEncoder:
    vision = _vision(blocks, patch_size=16, image_size=16 * GRID)
    model = hf.SiglipModel(hf.SiglipConfig(text_config=_text(), vision_config=vision))
    return TinyEncoder("siglip2", 16, model, model.vision_model, 0)


def _siglip2_naflex(blocks: int) -> TinyEncoder:
    vision = _vision(blocks, patch_size=16, num_patches=GRID**2)
    model = hf.Siglip2Model(hf.Siglip2Config(text_config=_text(), vision_config=vision))
    return TinyEncoder("siglip2", 16, model, model.vision_model, 0)


def _clip(blocks: int) -> TinyEncoder:
    vision = _vision(blocks, patch_size=14, image_size=14 * GRID)
    model = hf.CLIPModel(hf.CLIPConfig(text_config=_text(), vision_config=vision))
    return TinyEncoder("clip", 14, model, model.vision_model, 1)


def _vjepa2(blocks: int) -> TinyEncoder:
    config = hf.VJEPA2Config(
        **_SIZES,
        num_hidden_layers=blocks,
        crop_size=16 * GRID,
        frames_per_clip=4,
        pred_hidden_size=12,
        pred_num_attention_heads=2,
        pred_num_hidden_layers=1,
    )
    model = hf.VJEPA2Model(config)
    return TinyEncoder("vjepa2", 16, model, model, 0)


LAYOUTS = {
    "dinov2": _dinov2,
    "dinov2-with-registers": _dinov2_registers,
    "dinov3": _dinov3,
    "siglip2": _siglip2,
    "siglip2-naflex": _siglip2_naflex,
    "clip": _clip,
    "vjepa2": _vjepa2,
}


def make_encoder(layout: str, blocks: int = 3) -> TinyEncoder:
    """A model with every parameter random: zeros and ones would hide what is done with them."""
    torch.manual_seed(0)
    made = LAYOUTS[layout](blocks)
    for parameter in made.whole.parameters():
        nn.init.normal_(parameter, std=0.3)
    made.whole.eval()
    return made


def save_encoder(folder: Path, layout: str, blocks: int = 3) -> TinyEncoder:
    """Make a model and write it as a checkpoint."""
    made = make_encoder(layout, blocks)
    made.whole.save_pretrained(folder)
    return made


@torch.no_grad()
def run_tower(made: TinyEncoder, pixels: Tensor, **options: Any) -> Any:
    """The library's own pass over pixels (B, 3, S, S), with the tokens after every block."""
    options["output_hidden_states"] = True
    tower = made.tower
    if isinstance(tower, hf.VJEPA2Model):
        clip = torch.stack([pixels, pixels], dim=1)
        return tower(pixel_values_videos=clip, skip_predictor=True, **options)
    if isinstance(tower, hf.Siglip2VisionModel):
        side = pixels.shape[-1] // made.patch
        rows = [
            pixels[:, :, made.patch * i : made.patch * (i + 1), made.patch * j :][..., : made.patch]
            for i in range(side)
            for j in range(side)
        ]
        # As the library's image processor: rows, columns, colours.
        patches = torch.stack([row.permute(0, 2, 3, 1).flatten(1) for row in rows], dim=1)
        mask = torch.ones(patches.shape[:2], dtype=torch.int64)
        shapes = torch.tensor([[side, side]] * len(pixels))
        return tower(patches, pixel_attention_mask=mask, spatial_shapes=shapes, **options)
    return tower(pixel_values=pixels, **options)

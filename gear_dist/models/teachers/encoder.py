"""Vision transformers of the transformers library as teachers: what all families share.

Shapes: B images, L token positions, S pixels of the encoder's input along a side, D its width,
N positions that an encoder has learned, with what is no patch first.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gear_dist.config.models import TeacherConfig
from gear_dist.errors import ConfigError
from gear_dist.models.teachers import encoder_files
from gear_dist.models.teachers.base import Teacher

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class EncoderTeacher(Teacher):
    """An encoder with one patch a token position, whatever grid it was trained at.

    A family sets the class attributes and `num_other_tokens`, and says in `fit_grid` and `tokens`
    what it does differently.
    """

    backbone: Any
    patch_sizes: ClassVar[tuple[int, ...]]
    """Pixels of a patch along a side that the family's models have."""
    mean: ClassVar[tuple[float, float, float]] = IMAGENET_MEAN
    """Of each colour in [0, 1], subtracted."""
    std: ClassVar[tuple[float, float, float]] = IMAGENET_STD
    """Of each colour, divided by."""
    blocks: ClassVar[str]
    """Where the backbone has its blocks, a ModuleList."""
    final_norm: ClassVar[str]
    """Where it has the norm after them."""
    fixed_sizes: ClassVar[Mapping[str, Any]] = {}
    """Values of config.json that are replaced."""
    published: ClassVar[Mapping[str, Mapping[str, Any]]]
    """config.json of published models by hub name, as far as sizes depend on it."""

    def __init__(self, backbone: Any, *, image_size: int, grid_size: int, block: int = 0) -> None:
        """Take a model of the library over; what features do not need is dropped.

        Args:
            backbone: the model, or the part of it that yields tokens.
            image_size: side of the images, pixels.
            grid_size: token positions along a side.
            block: 0: the model's output; n: the tokens after n blocks, before the final norm.
        """
        super().__init__(image_size=image_size, grid_size=grid_size)
        self.backbone = backbone
        self.block = block
        self._source: tuple[EncoderTeacher, ...] = ()
        self._kept: dict[int, Tensor] = {}
        self._images: Tensor | None = None
        self._shared_blocks: set[int] = set()
        self.width = backbone.config.hidden_size
        side = backbone.config.patch_size * grid_size
        self.input = EncoderInput(side, self.mean, self.std)
        self.fit_grid()
        if block:
            del backbone.get_submodule(self.blocks)[block:]
            backbone.set_submodule(self.final_norm, nn.Identity())
        self.freeze()

    @classmethod
    def load(cls, config: TeacherConfig, *, image_size: int, grid_size: int, setting: str) -> Self:
        """The teacher of a local folder or a hub name; see `load_teacher`."""
        backbone = encoder_files.load_backbone(cls, config, setting)
        return cls(backbone, image_size=image_size, grid_size=grid_size, block=config.block)

    @classmethod
    def untrained(
        cls, config: TeacherConfig, *, image_size: int, grid_size: int, setting: str
    ) -> Self:
        """The teacher with whatever the memory of its weights holds."""
        backbone = encoder_files.empty_backbone(cls, config, setting)
        return cls(backbone, image_size=image_size, grid_size=grid_size, block=config.block)

    @property
    def num_other_tokens(self) -> int:
        """Tokens before the patches': class token, registers."""
        return 0

    def fit_grid(self) -> None:
        """Fit what the backbone knows of positions to the token grid."""
        raise NotImplementedError

    def tokens(self, pixels: Tensor) -> Tensor:
        """All tokens of the encoder's input (B, 3, S, S), the patches' last."""
        return self.backbone(pixel_values=pixels).last_hidden_state

    def encode(self, images: Tensor) -> Tensor:
        """Patch features (B, L, D) of images (B, 3, H, W) in [-1, 1]."""
        source = self._source[0] if self._source else self
        return source.tokens_after(images, self.block)[:, source.num_other_tokens :]

    def share(self, deeper: "EncoderTeacher") -> None:
        """Read the tokens from a pass that a deeper teacher of the same model makes anyway.

        This teacher's own weights go. What it gives for an image stays the same, bit for bit.
        """
        del self.backbone, self.input
        self._source = (deeper,)  # in a tuple: no submodule, so its weights count once
        deeper.keep_tokens(self.block)

    def keep_tokens(self, block: int) -> None:
        """From now on a pass keeps its tokens after a block, for `tokens_after`."""
        if block in self._shared_blocks:
            return
        self._shared_blocks.add(block)
        if block == self.block:
            return

        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            self._kept[block] = output[0] if isinstance(output, tuple) else output

        self.backbone.get_submodule(self.blocks)[block - 1].register_forward_hook(keep)

    def tokens_after(self, images: Tensor, block: int) -> Tensor:
        """All tokens after a block, 0: the output; one pass serves all who ask for these images."""
        if not self._shared_blocks:
            return self.tokens(self.input(images))
        if self._images is not images:
            self._images, self._kept = images, {}
            self._kept[self.block] = self.tokens(self.input(images))
        return self._kept[block]


class EncoderInput(nn.Module):
    """What an encoder sees of a crop: its own normalisation, its own size.

    Bicubic, no antialias, corners not aligned, overshoot not clamped.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, side: int, mean: tuple[float, float, float], std: tuple[float, float, float]
    ) -> None:
        super().__init__()
        self.side = side
        # Not in weights: they are the family's.
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) fp32 of images (B, 3, H, W), float in [-1, 1]."""
        pixels = ((images.float() + 1) / 2 - self.mean) / self.std
        size = (self.side, self.side)
        return F.interpolate(pixels, size, mode="bicubic", align_corners=False, antialias=False)


def resample_positions(
    positions_ND: Tensor,
    grid_size: int,
    *,
    num_other: int = 0,
    mode: Literal["bicubic", "bilinear"] = "bicubic",
) -> Tensor:
    """Learned position embeddings at another square grid, antialiased.

    As timm's `resample_abs_pos_embed`, by which the method's published models had theirs made.

    Args:
        positions_ND: (num_other + G^2, D), raster order.
        grid_size: positions along a side of the new grid.
        num_other: rows before the grid's, which stay.
        mode: how values between positions are found.

    Returns:
        (num_other + grid_size^2, D), the given tensor itself where it has that grid.

    Raises:
        ConfigError: the positions are no square grid.
    """
    others, patches = positions_ND[:num_other], positions_ND[num_other:]
    source = round(len(patches) ** 0.5)
    if source**2 != len(patches):
        raise ConfigError(
            f"teacher.path: {len(patches)} position embeddings are no square grid: use an encoder "
            "that was trained at square images"
        )
    if source == grid_size:
        return positions_ND
    grid = patches.float().T.unflatten(1, (source, source))[None]
    size = (grid_size, grid_size)
    grid = F.interpolate(grid, size, mode=mode, align_corners=False, antialias=True)
    return torch.cat([others, grid[0].flatten(1).T.to(positions_ND.dtype)])

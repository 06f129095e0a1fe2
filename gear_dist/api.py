"""Trained pairs in Python: `pair = gear_dist.load("runs/demo")`, then generate, encode, decode.

Shapes: B images, H x W pixels, L tokens.
"""

import dataclasses
import math
import numbers
import operator
import tempfile
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gear_dist.config.colour import parse_colour
from gear_dist.config.data import DataConfig
from gear_dist.config.models import SamplingConfig
from gear_dist.config.schema import RunConfig
from gear_dist.data.images import crop, resize_short_side, to_rgb
from gear_dist.distributed.device import choose_device
from gear_dist.errors import ConfigError
from gear_dist.inference.image_files import read_image
from gear_dist.inference.model_folder import ModelFolder, open_model
from gear_dist.inference.pipeline import GearPipeline
from gear_dist.inference.subjects import ClassSubjects, PromptSubjects, Subjects
from gear_dist.interop.export import export_model
from gear_dist.interop.hub import fetch_model, is_repository_name, push_folder
from gear_dist.runs.classes import class_index, class_names

ImageLike = Tensor | np.ndarray | Image.Image | str | Path
"""uint8 (3, H, W) or (H, W, 3) of the pair's size, or a picture of any size or its file, which is
resized by its short side and cropped at its centre."""


class Images(NamedTuple):
    """Images, and the seeds that give them again."""

    tensor: Tensor
    """uint8 (B, 3, H, W), on the CPU."""
    seeds: tuple[int, ...] = ()
    """Of generated ones: `generate(classes=[CLASS], seed=SEED)` gives the same image alone."""

    def pil(self) -> list[Image.Image]:
        """The same as pictures."""
        return [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in self.tensor]


class Pair:
    """A trained tokenizer, and the generator over its codes where there is one.

    Attributes:
        pipeline: the networks.
        classes: names of the classes, where they are known.
    """

    def __init__(self, model: ModelFolder, device: str | torch.device = "auto") -> None:
        """Read a model's weights.

        Args:
            model: see `gear_dist.inference.model_folder.open_model`.
            device: auto, cuda, cpu, or a torch.device.

        Raises:
            DataError: it has no tokenizer, or its weights do not fit. ConfigError: no such device.
        """
        self._model = model
        if not isinstance(device, torch.device):
            device = choose_device(device, setting="device")
        self.pipeline = GearPipeline.load(model, device)
        self.classes = tuple(class_names(model.path))

    @property
    def config(self) -> RunConfig:
        """The configuration that builds the networks."""
        return self.pipeline.config

    def generate(
        self,
        classes: Sequence[int | str] | None = None,
        *,
        prompts: Sequence[str] | None = None,
        seed: int = 0,
        seeds: Sequence[int] | None = None,
        **sampling: Any,
    ) -> Images:
        """An image for each class, or for each prompt of a text-to-image pair.

        Args:
            classes: indices or names.
            prompts: in place of classes.
            seed: of the first image, from which the others' are derived, as `gear-dist sample
                --seed`; 0 to 2^64 - 1.
            seeds: of every image, in place of `seed`: each image is the one that it asks for alone.
            sampling: settings of `sampling.*`, such as guidance, temperature, top_k.

        Raises:
            ConfigError: an unknown class or setting, a value out of range, classes for a pair that
                takes prompts or the other way round. DataError: there is no generator.
        """
        settings = self._sampling(sampling)
        if (classes is None) == (prompts is None):
            raise ConfigError(
                "generate: give classes=[...], or prompts=[...] of a text-to-image pair"
            )
        classes = None if classes is None else _as_list("classes", classes)
        prompts = None if prompts is None else _as_list("prompts", prompts)
        seed = _as_whole("seed", seed)
        seeds = None if seeds is None else [_as_whole("seeds", each) for each in seeds]
        subjects: Subjects
        if prompts is not None:
            subjects = PromptSubjects(tuple(prompts))
        else:
            assert classes is not None
            subjects = ClassSubjects(tuple(map(self._label, classes)), self.classes)
        count = subjects.num_images
        if count == 0:
            raise ConfigError("generate: no classes and no prompts: name at least one")
        if seeds is not None and len(seeds) != count:
            raise ConfigError(f"generate: {len(seeds)} seeds for {count} images: give one for each")
        if seeds is None:
            own = subjects.seeds(seed)
        else:
            own = [subjects.pick([i]).seeds(asked)[0] for i, asked in enumerate(seeds)]
        images = self.pipeline.generate(subjects.condition(self.pipeline), own, settings)
        return Images(images, tuple(subjects.asking_seed(i, each) for i, each in enumerate(own)))

    def encode(self, images: "ImageLike | Sequence[ImageLike] | Images") -> Tensor:
        """Indices (B, L) of images, int64 on the CPU."""
        return self.pipeline.encode(self._read(images))

    def decode(self, indices_BL: Tensor) -> Images:
        """Images of indices (B, L).

        Raises:
            ConfigError: another number of tokens than an image has, or an index that is no code.
        """
        codes, tokens = self.config.tokenizer.codebook_size, self.config.num_tokens
        if not isinstance(indices_BL, Tensor) or indices_BL.is_floating_point():
            raise ConfigError(f"decode: a tensor of whole numbers (B, {tokens}) is needed")
        if indices_BL.ndim != 2 or indices_BL.shape[1] != tokens:
            raise ConfigError(
                f"decode: indices of shape {tuple(indices_BL.shape)}: use (B, {tokens})"
            )
        if indices_BL.numel() and not 0 <= int(indices_BL.min()) <= int(indices_BL.max()) < codes:
            raise ConfigError(f"decode: an index is out of range: use 0 to {codes - 1}")
        return Images(self.pipeline.decode(indices_BL.long()))

    def reconstruct(self, images: "ImageLike | Sequence[ImageLike] | Images") -> Images:
        """Images through the tokenizer and back."""
        return Images(self.pipeline.reconstruct(self._read(images)))

    # -- the hub ----------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        device: str | torch.device = "auto",
    ) -> Self:
        """A pair of a run folder, a model folder, or a hub repository OWNER/NAME.

        A folder of that name wins over a repository. Arguments as in huggingface_hub.

        Raises:
            ConfigError: it is neither. DataError: the hub has it not, or its weights do not fit.
        """
        name = pretrained_model_name_or_path
        if Path(name).exists() or not is_repository_name(str(name)):
            return cls(open_model(name), device)
        folder = fetch_model(
            str(name),
            revision=revision,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
        )
        return cls(open_model(folder), device)

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write the pair as a model folder: config.json, safetensors, a model card.

        Raises:
            ConfigError: the folder holds something already. StorageError: the disk refuses.
        """
        export_model(self._model, Path(save_directory))

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str = "Push model using gear-dist.",
        private: bool | None = None,
        token: str | None = None,
        branch: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """Upload the pair to a hub repository, which is made where it is absent; the commit's URL.

        HF_TOKEN and `hf auth login` act as everywhere; arguments as in huggingface_hub.

        Raises:
            DataError: the hub cannot be reached, or refuses.
        """
        with tempfile.TemporaryDirectory(prefix="gear-push-") as scratch:
            folder = Path(scratch) / repo_id.rpartition("/")[2]
            self.save_pretrained(folder)
            return push_folder(
                folder,
                repo_id,
                commit_message=commit_message,
                private=private,
                token=token,
                branch=branch,
                create_pr=create_pr,
            )

    # -- arguments --------------------------------------------------------------------------

    def _sampling(self, changes: dict[str, Any]) -> SamplingConfig:
        known = [field.name for field in dataclasses.fields(SamplingConfig)]
        unknown = [name for name in changes if name not in known]
        if unknown:
            raise ConfigError(
                f"generate: {unknown[0]} is no setting of sampling: use {', '.join(known)}"
            )
        for name, value in changes.items():
            _check_type(name, value, typing.get_type_hints(SamplingConfig)[name])
        return dataclasses.replace(self.config.sampling, **changes)

    def _label(self, item: int | str) -> int:
        # A number is an index, also where a class is called so.
        names, count = self.classes, self.config.generator.num_classes
        if isinstance(item, str):
            return class_index(item, count, names, "classes")
        return class_index(str(_as_whole("classes", item)), count, (), "classes")

    def _read(self, images: "ImageLike | Sequence[ImageLike] | Images") -> Tensor:
        if isinstance(images, Images):
            images = images.tensor
        if isinstance(images, Tensor | np.ndarray) and images.ndim == 4:
            images = list(images)
        if isinstance(images, Tensor | np.ndarray | Image.Image | str | Path):
            images = [images]
        if not len(images):
            raise ConfigError("no images: give at least one")
        return torch.stack([_to_pixels(image, self.config.data) for image in images])


def _as_list(name: str, items: Any) -> list[Any]:
    """Classes or prompts, of a list, tensor or array; a string would be taken letter by letter.

    Raises:
        ConfigError: it is something else.
    """
    if isinstance(items, Tensor | np.ndarray):
        items = items.tolist()
    if isinstance(items, str) or not isinstance(items, Iterable):
        raise ConfigError(f"generate: {name}={items!r} is no list: use {name}=[{items!r}]")
    return list(items)


def _as_whole(name: str, value: Any) -> int:
    """A whole number, also of numpy's or torch's.

    Raises:
        ConfigError: it is something else.
    """
    try:
        return operator.index(value)
    except TypeError:
        raise ConfigError(f"generate: {name}={value!r} is no whole number") from None


def _check_type(name: str, value: Any, kind: Any) -> None:
    """Refuse a setting of another type than its field's.

    Raises:
        ConfigError: it is.
    """
    if typing.get_origin(kind) is typing.Literal:
        allowed = typing.get_args(kind)
        wanted = f"one of {', '.join(allowed)}"
        fits = value in allowed
    elif kind is bool:
        wanted, fits = "True or False", isinstance(value, bool)
    else:
        wanted = "a whole number" if kind is int else "a number"
        numbers_of = numbers.Integral if kind is int else numbers.Real
        fits = isinstance(value, numbers_of) and not isinstance(value, bool)
        fits = fits and math.isfinite(value)
    if not fits:
        raise ConfigError(f"generate: {name}={value!r}: use {wanted}")


def _to_pixels(image: ImageLike, data: DataConfig) -> Tensor:
    """uint8 (3, H, W) of the pair's size."""
    if isinstance(image, str | Path):
        return read_image(Path(image), data)
    if isinstance(image, Image.Image):
        rgb = to_rgb(image, parse_colour(data.background))
        square = crop(resize_short_side(rgb, data.image_size), data.image_size)
        return torch.from_numpy(np.asarray(square).transpose(2, 0, 1).copy())
    if isinstance(image, np.ndarray):
        image = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
    side = data.image_size
    if image.dtype != torch.uint8 or tuple(image.shape) != (3, side, side):
        raise ConfigError(
            f"an image of shape {tuple(image.shape)} and {image.dtype}: use uint8 (3, {side}, "
            f"{side}), a PIL image or a file"
        )
    return image


def load(
    model: str | Path, *, device: str | torch.device = "auto", revision: str | None = None
) -> Pair:
    """A trained pair: of a run folder, a model folder, or a hub repository OWNER/NAME.

    A folder of that name wins over a repository.

    Raises:
        ConfigError: it is neither. DataError: there are no weights, or they do not fit.
    """
    return Pair.from_pretrained(model, device=device, revision=revision)

"""What the server's routes do, on one pair: generate, reconstruct, describe.

Shapes: H x W pixels, h x w tokens, K codes.
"""

import asyncio
import base64
import contextlib
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from gear_dist.config.colour import parse_colour
from gear_dist.data.images import BadImageError, crop, decode_image, resize_short_side
from gear_dist.distributed.device import choose_device
from gear_dist.errors import ConfigError, NumericError
from gear_dist.inference.model_folder import open_model
from gear_dist.inference.pipeline import GearPipeline
from gear_dist.inference.png import encode_png
from gear_dist.inference.subjects import ClassSubjects, PromptSubjects, Subjects
from gear_dist.models.generator import ClassCondition, Condition
from gear_dist.runs.classes import class_index, class_names
from gear_dist.runs.environment import num_cores
from gear_dist.serving.batching import Batcher, BusyError, ImageRequest
from gear_dist.serving.errors import RequestError
from gear_dist.serving.metrics import Metrics
from gear_dist.serving.requests import SAMPLING_FIELDS, GenerationRequest
from gear_dist.serving.settings import ServerSettings
from gear_dist.serving.token_map import code_colours

MOST_PICTURES = 16
"""That wait to be reconstructed."""


class Service:
    """One pair, the images that wait for it, and the answers."""

    def __init__(self, settings: ServerSettings) -> None:
        """Load the model.

        Raises:
            DataError: it has no tokenizer, or its weights do not fit. ConfigError: no such device.
        """
        model = open_model(settings.model)
        self.settings = settings
        self.name = model.path.resolve().name
        self.path = settings.model
        self.classes = class_names(model.path)
        self._device = choose_device(settings.device, setting="--device")
        if self._device.type == "cpu":
            torch.set_num_threads(settings.threads or num_cores())
        self._pair = GearPipeline.load(model, self._device)
        self._config = model.config
        self._colours_K3 = code_colours(self._pair.tokenizer, model.config.tokenizer.codebook_size)
        self._num_pictures = 0
        # Of their own: large pictures must not hold up the images of others.
        self._picture_thread = ThreadPoolExecutor(1, thread_name_prefix="pictures")
        self.metrics = Metrics(lambda: self._batcher.num_waiting)
        self._batcher = Batcher(
            self._make_images,
            batch=settings.batch,
            queue=settings.queue,
            on_batch=self.metrics.count_batch,
        )

    def _make_images(
        self, images: Sequence[ImageRequest], check: Callable[[], None]
    ) -> Sequence[np.ndarray]:
        conditions = [image.condition for image in images]
        condition: Condition
        if self.takes_prompts:
            condition = self._pair.read_prompts([str(prompt) for prompt in conditions])
        else:
            condition = ClassCondition(torch.tensor(conditions, dtype=torch.int64))
        seeds = [image.seed for image in images]
        made = self._pair.generate(condition, seeds, images[0].sampling, on_token=check)
        return list(made.permute(0, 2, 3, 1).contiguous().numpy())

    @property
    def generates(self) -> bool:
        """Whether there is a generator."""
        return self._pair.generator is not None

    @property
    def takes_prompts(self) -> bool:
        """Whether images are of prompts, not of classes."""
        return self._config.generator.condition == "text"

    def describe(self) -> dict[str, Any]:
        """What a client may ask of this model."""
        sampling = self.settings.sampling
        return {
            "id": self.name,
            "object": "model",
            "created": 0,
            "owned_by": "gear-dist",
            "generates": self.generates,
            "takes_prompts": self.takes_prompts,
            "classes": self._class_list() if self.generates and not self.takes_prompts else [],
            "image_size": self._config.data.image_size,
            "guidance_possible": self._config.generator.class_dropout > 0,
            "sampling": {name: getattr(sampling, name) for name in SAMPLING_FIELDS},
            "images_per_request": self.settings.images_per_request,
            "max_body_bytes": self.settings.max_body_bytes,
        }

    def _class_list(self) -> list[str]:
        count = self._config.generator.num_classes
        return self.classes[:count] or [str(index) for index in range(count)]

    # -- generation -------------------------------------------------------------------------

    async def generate(self, request: GenerationRequest) -> dict[str, Any]:
        """Images, in the order of their seeds.

        Raises:
            RequestError: what cannot be done, or not now.
        """
        subjects, images = self._read(request)
        try:
            made = await self._batcher.make(images)
        except BusyError as error:
            headers = {"Retry-After": str(error.retry_after_s)}
            raise RequestError(429, str(error), headers=headers) from None
        except NumericError as error:
            raise RequestError(500, str(error)) from None
        facts = [self._facts(subjects, i, image) for i, image in enumerate(images)]
        files = await asyncio.to_thread(lambda: list(map(encode_png, made, facts)))
        self.metrics.images.inc(len(files))
        return {
            "created": int(time.time()),
            "data": [
                {"b64_json": base64.b64encode(file).decode(), **known}
                for file, known in zip(files, facts, strict=True)
            ],
        }

    def _read(self, request: GenerationRequest) -> tuple[Subjects, list[ImageRequest]]:
        """What the images show, and the images."""
        if not self.generates:
            raise RequestError(404, f"{self.name} has no generator: it can only reconstruct")
        self._check_size(request)
        sampling = request.read_sampling(
            self.settings.sampling,
            self._config.generator,
            self._config.tokenizer.codebook_size,
        )
        subjects: Subjects
        condition: int | str
        if self.takes_prompts:
            condition = str(request.prompt)
            subjects = PromptSubjects((condition,) * request.n)
        else:
            condition = self._read_class(request.prompt)
            subjects = ClassSubjects((condition,) * request.n, tuple(self.classes))
        seeds = subjects.seeds(request.read_seed())
        return subjects, [ImageRequest(condition, own, sampling) for own in seeds]

    def _check_size(self, request: GenerationRequest) -> None:
        most, side = self.settings.images_per_request, self._config.data.image_size
        if request.n > most:
            raise RequestError(
                400,
                f"n={request.n}: at most {most} a request; `gear-dist sample --num` makes many",
                field="n",
            )
        if request.size not in ("auto", f"{side}x{side}"):
            raise RequestError(
                400, f"size={request.size[:40]}: this model makes {side}x{side}", field="size"
            )

    def _read_class(self, prompt: int | str) -> int:
        # A number is an index, also where a class is called so.
        names = self.classes if isinstance(prompt, str) else []
        try:
            return class_index(str(prompt), self._config.generator.num_classes, names, "prompt")
        except ConfigError as error:
            raise RequestError(400, str(error), field="prompt") from None

    def _facts(self, subjects: Subjects, place: int, image: ImageRequest) -> dict[str, Any]:
        """What is known of an image, in the answer and in its PNG."""
        seed = subjects.asking_seed(place, image.seed)
        words = ["gear-dist", "sample", self.path, *subjects.words(place, image.seed)]
        words += ["--count", "1", "--out", f"sample-{seed}.png"]
        for name in SAMPLING_FIELDS:
            value = getattr(image.sampling, name)
            if value != getattr(self._config.sampling, name):
                words += [f"--{name.replace('_', '-')}", f"{value}"]
        return subjects.facts(place) | {"seed": seed, "command": shlex.join(words)}

    # -- reconstruction ---------------------------------------------------------------------

    @contextlib.contextmanager
    def picture_slot(self) -> Iterator[None]:
        """One of a few, taken before a picture's file is: each may be as large as a body may be.

        Raises:
            RequestError: all are taken.
        """
        if self._num_pictures == MOST_PICTURES:
            message = f"{MOST_PICTURES} pictures are waiting already: try again in 1 s"
            raise RequestError(429, message, headers={"Retry-After": "1"})
        self._num_pictures += 1
        try:
            yield
        finally:
            self._num_pictures -= 1

    async def reconstruct(self, file: bytes) -> dict[str, Any]:
        """A picture as the tokenizer sees it, its reconstruction, and its tokens.

        Raises:
            RequestError: it is no picture, or too large.
        """
        loop, thread = asyncio.get_running_loop(), self._picture_thread
        square = await loop.run_in_executor(thread, self._read_picture, file)
        indices_L, rebuilt = await self._batcher.call(lambda: self._rebuild(square))
        return await loop.run_in_executor(thread, self._show, square, indices_L, rebuilt)

    def _read_picture(self, file: bytes) -> np.ndarray:
        data = self._config.data
        try:
            image = decode_image(file, data.max_pixels, parse_colour(data.background))
        except BadImageError as error:
            status = 413 if error.kind == "too-large" else 400
            raise RequestError(status, f"image: {error}", field="image") from None
        return np.asarray(crop(resize_short_side(image, data.image_size), data.image_size))

    def _rebuild(self, square: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Indices (L,), and the pixels that they decode to."""
        indices_1L = self._pair.encode(torch.from_numpy(square.transpose(2, 0, 1).copy())[None])
        rebuilt = self._pair.decode(indices_1L)[0].permute(1, 2, 0).contiguous()
        return indices_1L[0].numpy(), rebuilt.numpy()

    def _show(self, square: np.ndarray, indices_L: np.ndarray, rebuilt: np.ndarray) -> Any:
        side = round(len(indices_L) ** 0.5)
        tokens_hw = indices_L.reshape(side, side)
        return {
            "created": int(time.time()),
            "data": [
                {
                    "b64_json": _b64(rebuilt),
                    "original_b64_json": _b64(square),
                    "token_map_b64_json": _b64(self._colours_K3[tokens_hw]),
                    "tokens": tokens_hw.tolist(),
                }
            ],
        }


def _b64(pixels_HWC: np.ndarray) -> str:
    return base64.b64encode(encode_png(pixels_HWC)).decode()

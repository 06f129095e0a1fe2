"""Images of many requests, made in batches of those that wait when the model becomes free.

Ray Serve's own batching (2.60) closes a batch while the one before it still runs: under load its
batches are as small as what arrives within its wait, and its wait delays whoever is alone. Here a
batch is taken at the moment when it can run, so that it grows with the load and nobody waits for
company. It also ends a batch that runs when all who wait for it are gone.
"""

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np

from gear_dist.config.models import SamplingConfig

Result = TypeVar("Result")


class ImageRequest(NamedTuple):
    """One image that someone waits for."""

    condition: int | str
    """A class's index, or a prompt."""
    seed: int
    sampling: SamplingConfig


class BusyError(Exception):
    """Too many images wait."""

    def __init__(self, waiting: int, retry_after_s: int) -> None:
        super().__init__(f"{waiting} images are waiting already: try again in {retry_after_s} s")
        self.retry_after_s = retry_after_s


class AbandonedError(Exception):
    """Nobody waits for this batch any more."""


class _Waiting(NamedTuple):
    image: ImageRequest
    future: "asyncio.Future[np.ndarray]"


MakeImages = Callable[[Sequence[ImageRequest], Callable[[], None]], Sequence[np.ndarray]]
"""Pixels (H, W, 3) of images with the same settings; the second argument is to be called often, and
raises AbandonedError where the work is in vain."""


class Batcher:
    """Runs one batch at a time in a thread of its own; everything else on one event loop."""

    def __init__(
        self,
        make_images: MakeImages,
        *,
        batch: int,
        queue: int,
        on_batch: Callable[[int, float], Any] = lambda size, seconds: None,
    ) -> None:
        """Start nothing yet.

        Args:
            make_images: see there.
            batch: images at a time, at most.
            queue: images that may wait.
            on_batch: told of the size and the seconds of each batch that was finished.
        """
        self._make_images = make_images
        self._batch, self._queue = batch, queue
        self._on_batch = on_batch
        self._waiting: deque[_Waiting] = deque()
        self._wakes = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        self._seconds = 1.0
        # One, because torch's pools of threads belong to the thread that calls it.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")

    @property
    def num_waiting(self) -> int:
        """Images that no batch has taken yet."""
        return len(self._waiting)

    async def make(self, images: Sequence[ImageRequest]) -> list[np.ndarray]:
        """Pixels (H, W, 3) of all of them; cancelled, they leave the queue.

        Raises:
            BusyError: they would be more than may wait; none of them is made.
        """
        if len(self._waiting) + len(images) > self._queue:
            raise BusyError(len(self._waiting), self._retry_after_s())
        loop = asyncio.get_running_loop()
        if self._worker is None:
            self._worker = loop.create_task(self._work())
        mine = [_Waiting(image, loop.create_future()) for image in images]
        self._waiting.extend(mine)
        self._wakes.set()
        try:
            return await asyncio.gather(*(item.future for item in mine))
        except BaseException:
            for item in mine:
                item.future.cancel()
            self._waiting = deque(item for item in self._waiting if not item.future.done())
            raise

    async def call(self, function: Callable[[], Result]) -> Result:
        """Run something else on the model's thread, after the batch that runs."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    def _retry_after_s(self) -> int:
        return max(1, math.ceil(len(self._waiting) / self._batch * self._seconds))

    async def _work(self) -> None:
        while True:
            await self._wakes.wait()
            while batch := self._take():
                await self._run(batch)
            self._wakes.clear()

    def _take(self) -> list[_Waiting]:
        """The first that waits, and others with its settings, in their order."""
        taken: list[_Waiting] = []
        left: deque[_Waiting] = deque()
        for item in self._waiting:
            alike = not taken or item.image.sampling == taken[0].image.sampling
            (taken if alike and len(taken) < self._batch else left).append(item)
        self._waiting = left
        return taken

    async def _run(self, batch: list[_Waiting]) -> None:
        def check() -> None:
            if all(item.future.cancelled() for item in batch):
                raise AbandonedError

        start = time.monotonic()
        images = [item.image for item in batch]
        loop = asyncio.get_running_loop()
        try:
            made = await loop.run_in_executor(self._thread, self._make_images, images, check)
        except AbandonedError:
            return
        except Exception as error:
            for item in batch:
                with contextlib.suppress(asyncio.InvalidStateError):
                    item.future.set_exception(error)
            return
        self._seconds = time.monotonic() - start
        self._on_batch(len(batch), self._seconds)
        for item, pixels in zip(batch, made, strict=True):
            if not item.future.done():
                item.future.set_result(pixels)

"""Batches of waiting images: who shares one, who is refused, what happens to those who leave."""

import asyncio
import threading
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from gear_dist.config.models import SamplingConfig
from gear_dist.serving.batching import Batcher, BusyError, ImageRequest

PLAIN, GUIDED = SamplingConfig(guidance=1), SamplingConfig(guidance=3)
TIMEOUT_S = 20


def image(seed: int, sampling: SamplingConfig = PLAIN) -> ImageRequest:
    return ImageRequest(0, seed, sampling)


class Model:
    """Pixels that tell the seed; each batch waits until it is let go."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.started = threading.Semaphore(0)
        self.go = threading.Semaphore(0)
        self.watches = False

    def make(
        self, images: Sequence[ImageRequest], check: Callable[[], None]
    ) -> Sequence[np.ndarray]:
        assert len({item.sampling for item in images}) == 1
        self.batches.append([item.seed for item in images])
        self.started.release()
        while not self.go.acquire(timeout=0.01):
            if self.watches:
                check()
        return [np.full((1, 1, 3), item.seed, np.uint8) for item in images]

    async def running(self) -> None:
        """A batch has begun."""
        assert await asyncio.to_thread(self.started.acquire, timeout=TIMEOUT_S)


def run(test: Callable[[Model], object]) -> None:
    asyncio.run(asyncio.wait_for(test(Model()), TIMEOUT_S))  # type: ignore[arg-type]


def seeds(made: Sequence[np.ndarray]) -> list[int]:
    return [int(pixels[0, 0, 0]) for pixels in made]


def test_what_waits_becomes_one_batch_and_each_gets_its_own() -> None:
    async def test(model: Model) -> None:
        batcher = Batcher(model.make, batch=3, queue=9)
        first = asyncio.create_task(batcher.make([image(1)]))
        await model.running()
        others = [
            asyncio.create_task(batcher.make([image(seed), image(seed + 1)])) for seed in (2, 4)
        ]
        await asyncio.sleep(0.05)
        assert batcher.num_waiting == 4
        for _ in range(3):
            model.go.release()
        assert seeds(await first) == [1]
        assert [seeds(await other) for other in others] == [[2, 3], [4, 5]]
        assert model.batches == [[1], [2, 3, 4], [5]]

    run(test)


def test_a_batch_has_one_kind_of_settings_and_nobody_starves() -> None:
    async def test(model: Model) -> None:
        batcher = Batcher(model.make, batch=4, queue=9)
        tasks = [asyncio.create_task(batcher.make([image(1)]))]
        await model.running()
        for seed, sampling in ((2, GUIDED), (3, PLAIN), (4, GUIDED), (5, PLAIN)):
            tasks.append(asyncio.create_task(batcher.make([image(seed, sampling)])))
        await asyncio.sleep(0.05)
        for _ in range(3):
            model.go.release()
        assert [seeds(await task) for task in tasks] == [[1], [2], [3], [4], [5]]
        assert model.batches == [[1], [2, 4], [3, 5]]

    run(test)


def test_more_than_may_wait_is_refused_whole() -> None:
    async def test(model: Model) -> None:
        batcher = Batcher(model.make, batch=2, queue=3)
        first = asyncio.create_task(batcher.make([image(1)]))
        await model.running()
        second = asyncio.create_task(batcher.make([image(2), image(3)]))
        await asyncio.sleep(0.05)
        with pytest.raises(BusyError, match="2 images") as caught:
            await batcher.make([image(4), image(5)])
        assert caught.value.retry_after_s >= 1
        third = asyncio.create_task(batcher.make([image(6)]))
        for _ in range(3):
            model.go.release()
        assert [seeds(await each) for each in (first, second, third)] == [[1], [2, 3], [6]]

    run(test)


def test_who_leaves_is_not_worked_for() -> None:
    async def test(model: Model) -> None:
        model.watches = True
        batcher = Batcher(model.make, batch=1, queue=9)
        leaves = asyncio.create_task(batcher.make([image(1), image(2)]))
        await model.running()
        stays = asyncio.create_task(batcher.make([image(3)]))
        await asyncio.sleep(0.05)
        leaves.cancel()
        # The batch that runs is given up without being let go, and the next one begins.
        await model.running()
        assert model.batches == [[1], [3]]
        model.go.release()
        assert seeds(await stays) == [3]
        assert leaves.cancelled()

    run(test)


def test_a_batch_with_someone_left_goes_on() -> None:
    async def test(model: Model) -> None:
        model.watches = True
        batcher = Batcher(model.make, batch=2, queue=9)
        tasks = [asyncio.create_task(batcher.make([image(seed)])) for seed in (1, 2)]
        await model.running()
        tasks[0].cancel()
        await asyncio.sleep(0.1)
        model.go.release()
        assert seeds(await tasks[1]) == [2]
        assert model.batches == [[1, 2]]

    run(test)


def test_an_error_reaches_all_of_its_batch_and_the_next_one_runs() -> None:
    async def test(model: Model) -> None:
        def make(images: Sequence[ImageRequest], check: Callable[[], None]) -> Sequence[np.ndarray]:
            if images[0].seed == 1:
                raise ValueError("broken")
            return model.make(images, check)

        batcher = Batcher(make, batch=4, queue=9)
        tasks = [asyncio.create_task(batcher.make([image(1)])) for _ in range(2)]
        for task in tasks:
            with pytest.raises(ValueError, match="broken"):
                await task
        model.go.release()
        assert seeds(await batcher.make([image(2)])) == [2]

    run(test)


def test_other_work_takes_turns_with_batches() -> None:
    async def test(model: Model) -> None:
        batcher = Batcher(model.make, batch=1, queue=9)
        first = asyncio.create_task(batcher.make([image(1)]))
        await model.running()
        other = asyncio.create_task(batcher.call(threading.get_ident))
        await asyncio.sleep(0.05)
        assert not other.done()
        model.go.release()
        await asyncio.gather(first, other)

    run(test)

"""What images are to show, whatever the generator is conditioned on: classes or prompts."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, Self

import torch

from gear_dist.inference.pipeline import GearPipeline
from gear_dist.inference.seeds import derive_seeds, prompt_seeds, single_prompt_seed
from gear_dist.models.generator import ClassCondition, Condition, TextCondition


class Subjects(Protocol):
    """The subjects of some images, one an image."""

    @property
    def num_images(self) -> int:
        """Images that have one."""
        ...

    def pick(self, images: Sequence[int]) -> Self:
        """The subjects at these places."""
        ...

    def condition(self, pair: GearPipeline) -> ClassCondition | TextCondition:
        """What the generator takes; ConfigError where it takes the other kind."""
        ...

    def mixed(self, pair: GearPipeline, shares: Sequence[float]) -> Condition:
        """Of other images: between the first subject, share 0, and the last, share 1."""
        ...

    def seeds(self, seed: int) -> list[int]:
        """Of each image, as `gear-dist sample --seed` gives them."""
        ...

    def label(self, image: int) -> str:
        """For people."""
        ...

    def facts(self, image: int) -> dict[str, Any]:
        """For programs."""
        ...

    def asking_seed(self, image: int, seed: int) -> int:
        """The seed that asks for an image alone, of the seed that its noise has: what is recorded,
        and what `gear-dist sample --seed`, the server and Python take."""
        ...

    def words(self, image: int, seed: int) -> list[str]:
        """Options of `gear-dist sample --count 1` that give an image its subject and this seed."""
        ...


class ClassSubjects(NamedTuple):
    """Images of classes."""

    labels: tuple[int, ...]
    names: tuple[str, ...]
    """Of the corpus's classes; may be fewer than the generator's."""

    @property
    def num_images(self) -> int:
        """See `Subjects`, as below."""
        return len(self.labels)

    def pick(self, images: Sequence[int]) -> Self:
        return self._replace(labels=tuple(self.labels[image] for image in images))

    def condition(self, pair: GearPipeline) -> ClassCondition:
        return ClassCondition(torch.tensor(self.labels, dtype=torch.int64))

    def mixed(self, pair: GearPipeline, shares: Sequence[float]) -> Condition:
        first, last = (self.pick([end] * len(shares)).condition(pair) for end in (0, -1))
        return first.mixed(last, shares)

    def seeds(self, seed: int) -> list[int]:
        return derive_seeds(seed, range(len(self.labels)))

    def label(self, image: int) -> str:
        index = self.labels[image]
        return self.names[index] if index < len(self.names) else f"class {index}"

    def facts(self, image: int) -> dict[str, Any]:
        index = self.labels[image]
        named = {"class_name": self.names[index]} if index < len(self.names) else {}
        return {"class": index} | named

    def asking_seed(self, image: int, seed: int) -> int:
        return seed

    def words(self, image: int, seed: int) -> list[str]:
        index = self.labels[image]
        # A name wins over an index that looks like it, and may begin with "-".
        word = self.names[index] if index < len(self.names) else str(index)
        return [f"--classes={word}", "--seed", str(seed)]


class PromptSubjects(NamedTuple):
    """Images of prompts."""

    prompts: tuple[str, ...]

    @property
    def num_images(self) -> int:
        """See `Subjects`, as below."""
        return len(self.prompts)

    def pick(self, images: Sequence[int]) -> Self:
        return self._replace(prompts=tuple(self.prompts[image] for image in images))

    def condition(self, pair: GearPipeline) -> TextCondition:
        return pair.read_prompts(self.prompts)

    def mixed(self, pair: GearPipeline, shares: Sequence[float]) -> Condition:
        first, last = (self.pick([end] * len(shares)).condition(pair) for end in (0, -1))
        return first.mixed(last, shares)

    def seeds(self, seed: int) -> list[int]:
        return prompt_seeds(seed, self.prompts)

    def label(self, image: int) -> str:
        return self.prompts[image]

    def facts(self, image: int) -> dict[str, Any]:
        return {"prompt": self.prompts[image]}

    def asking_seed(self, image: int, seed: int) -> int:
        return single_prompt_seed(seed, self.prompts[image])

    def words(self, image: int, seed: int) -> list[str]:
        # With "=", because a prompt may begin with "-".
        return [f"--prompt={self.prompts[image]}", "--seed", str(self.asking_seed(image, seed))]

"""The generator with its projectors: what one engine trains."""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor, nn

from gear_dist.models.generator.conditioning import Condition
from gear_dist.models.generator.transformer import Generator, StraightThroughTokens, Tokens


class AlignedOutput(NamedTuple):
    """One pass of generator and projectors."""

    projected: tuple[Tensor, ...]
    """Per teacher: (B, L, teacher width)."""
    cross_entropy: Tensor | None
    """None where no targets were given."""


def build_projector(width: int, hidden: int, teacher_width: int) -> nn.Sequential:
    """Linear, SiLU, linear, SiLU, linear, all with bias."""
    return nn.Sequential(
        nn.Linear(width, hidden),
        nn.SiLU(),
        nn.Linear(hidden, hidden),
        nn.SiLU(),
        nn.Linear(hidden, teacher_width),
    )


def find_teacher_widths(projectors: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Feature widths of the teachers that a list of projectors is for, from their weights by name.

    A projector that lacks the bias of its last layer counts 0.
    """
    count = len({key.split(".")[0] for key in projectors})
    biases = (projectors.get(f"{i}.4.bias") for i in range(count))
    return tuple(0 if bias is None else len(bias) for bias in biases)


class AlignedGenerator(nn.Module):
    """One module, so that one engine owns both and the projectors share its clipping."""

    def __init__(self, generator: Generator, projectors: list[nn.Sequential]):
        super().__init__()
        self.generator = generator
        self.projectors = nn.ModuleList(projectors)

    def forward(
        self,
        tokens: Tokens,
        condition: Condition,
        targets_BL: Tensor | StraightThroughTokens | None = None,
    ) -> AlignedOutput:
        """See `Generator.forward`; the tap goes through every projector."""
        out = self.generator(tokens, condition, targets_BL)
        projected = tuple(project(out.tap_BLD) for project in self.projectors)
        return AlignedOutput(projected, out.cross_entropy)

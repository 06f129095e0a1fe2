"""What is measured: one forward and backward of an operation on one problem.

Shapes: N tokens, K codes, C code width, D table width.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from gear_kernels import (
    Affinity,
    assign,
    lfq_assign,
    lfq_soft_readout,
    soft_readout,
    straight_through_readout,
    vocabulary_cross_entropy,
)


class Shape(NamedTuple):
    tokens: int
    codes: int
    width: int
    columns: int

    def __str__(self) -> str:
        return f"N={self.tokens} K={self.codes} C={self.width} D={self.columns}"

    @classmethod
    def parse(cls, text: str) -> "Shape":
        """From `2048,16384,8,1280`."""
        return cls(*(int(part) for part in text.split(",")))


class Inputs(NamedTuple):
    latents_NC: Tensor
    codebook_KC: Tensor
    table_KD: Tensor
    out_grad_ND: Tensor
    targets_N: Tensor


def make_inputs(shape: Shape, device: str, table_dtype: torch.dtype) -> Inputs:
    """Normalised latents and codes that require gradients, and a table that does not."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, device=device)

    latents_NC = functional.normalize(normal(shape.tokens, shape.width))
    codebook_KC = functional.normalize(normal(shape.codes, shape.width))
    return Inputs(
        latents_NC.requires_grad_(),
        codebook_KC.requires_grad_(),
        normal(shape.codes, shape.columns).to(table_dtype),
        normal(shape.tokens, shape.columns).to(table_dtype),
        torch.randint(shape.codes, (shape.tokens,), generator=generator, device=device),
    )


def entropy_loss(token_entropy: Tensor, mean_K: Tensor) -> Tensor:
    """The caller's use of both entropies, ratio 0.05."""
    return 0.05 * (token_entropy + (mean_K * torch.log(mean_K + 1e-5)).sum())


def joint_step(inputs: Inputs, implementation: str) -> None:
    """VQ: index, entropies and soft read-out, forward and backward."""
    latents_NC, codebook_KC, table_KD, out_grad_ND, _ = inputs
    found = assign(latents_NC, codebook_KC, implementation=implementation)
    out_ND = soft_readout(
        latents_NC,
        codebook_KC,
        table_KD,
        found.soft_log_sum_exp_N,
        implementation=implementation,
    )
    loss = entropy_loss(found.token_entropy, found.mean_probabilities_K)
    torch.autograd.backward([loss, out_ND], [torch.ones_like(loss), out_grad_ND])


def assign_only(inputs: Inputs, implementation: str) -> None:
    """VQ: index and entropies, forward and backward."""
    found = assign(inputs.latents_NC, inputs.codebook_KC, implementation=implementation)
    entropy_loss(found.token_entropy, found.mean_probabilities_K).backward()


def readout_only(inputs: Inputs, implementation: str) -> None:
    """VQ: soft read-out, forward and backward."""
    soft_readout(*inputs[:3], implementation=implementation).backward(inputs.out_grad_ND)


def lfq_step(inputs: Inputs, implementation: str) -> None:
    """LFQ: index, entropies and soft read-out, forward and backward; K = 2^C."""
    found = lfq_assign(inputs.latents_NC, implementation=implementation)
    out_ND = lfq_soft_readout(inputs.latents_NC, inputs.table_KD, implementation=implementation)
    loss = entropy_loss(found.token_entropy, found.mean_probabilities_K)
    torch.autograd.backward([loss, out_ND], [torch.ones_like(loss), inputs.out_grad_ND])


def straight_through(inputs: Inputs, implementation: str) -> None:
    """IBQ: index and index back-propagation into the codebook, forward and backward."""
    latents_NC, codebook_KC = inputs[:2]
    options = {"affinity": Affinity.INNER_PRODUCT, "implementation": implementation}
    found = assign(latents_NC, codebook_KC, **options)
    out_NC = straight_through_readout(
        latents_NC, codebook_KC, codebook_KC, found.indices_N, **options
    )
    loss = entropy_loss(found.token_entropy, found.mean_probabilities_K)
    (loss + out_NC.square().mean()).backward()


def cross_entropy(inputs: Inputs, implementation: str) -> None:
    """Vocabulary loss with the table as the head's weight, forward and backward."""
    hidden_ND = inputs.out_grad_ND.detach().requires_grad_()
    weight_KD = inputs.table_KD.detach().requires_grad_()
    vocabulary_cross_entropy(hidden_ND, weight_KD, inputs.targets_N, implementation).backward()


OPERATIONS: dict[str, Callable[[Inputs, str], None]] = {
    "joint": joint_step,
    "assign": assign_only,
    "readout": readout_only,
    "lfq": lfq_step,
    "straight_through": straight_through,
    "cross_entropy": cross_entropy,
}


def shape_for(operation: str, shape: Shape) -> Shape:
    """The shape at which an operation is used: LFQ has 2^C codes, IBQ codes of 256 entries."""
    if operation == "lfq":
        return shape._replace(width=(shape.codes - 1).bit_length())
    return shape._replace(width=256) if operation == "straight_through" else shape


def reference_bytes(shape: Shape) -> int:
    """What the reference holds at its peak: about 14 float32 matrices (N, K)."""
    return 14 * 4 * shape.tokens * shape.codes

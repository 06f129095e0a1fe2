"""Straight-through read-out: the hard row forward, the soft assignment's gradient backward."""

from torch import Tensor

from gear_kernels import reference
from gear_kernels.dispatch import (
    Affinity,
    check_codes,
    check_table,
    check_temperatures,
    compute_dtype,
    resolve_for,
)
from gear_kernels.full_precision_matmul import traceable_full_precision
from gear_kernels.straight_through_autograd import differentiable_straight_through


def straight_through_readout(
    latents_NC: Tensor,
    codebook_KC: Tensor,
    table_KD: Tensor,
    indices_N: Tensor,
    log_sum_exp_N: Tensor | None = None,
    *,
    temperature: float = 1.0,
    affinity: Affinity = Affinity.INNER_PRODUCT,
    implementation: str = "auto",
) -> Tensor:
    """table[indices] with the gradient of (hard + softmax(s / temperature) - sg softmax) @ table.

    Backward, with g the output's gradient and p = softmax(s / temperature): table[indices] gets g,
    and s gets p (g.table - sum_k p g.table) / temperature. With the codebook as the table this is
    IBQ's index back-propagation.

    Args:
        latents_NC: (N, C), any floating dtype.
        codebook_KC: (K, C).
        table_KD: (K, D), one row a code; may be the codebook itself.
        indices_N: (N,) int64, as `assign` returned them.
        log_sum_exp_N: log sum_k exp(s / temperature) of the same inputs, if at hand: saves Triton
            a pass over the codes.
        temperature: of the softmax.
        affinity: the score.
        implementation: auto, triton, torch or reference; see `resolve`.

    Returns:
        (N, D) in the table's dtype, exactly the table's rows. The table's gradient adds rows in a
        fixed order. The backward recomputes; nothing (N, K) is allocated, except by the reference.
        Neither communicates nor synchronises. No second derivatives. torch.compile traces it whole.

    Raises:
        ValueError: shapes that do not fit, a temperature <= 0, an implementation that cannot run.
    """
    check_codes(latents_NC, codebook_KC)
    check_table(len(codebook_KC), table_KD)
    check_temperatures(temperature=temperature)
    if indices_N.shape != latents_NC.shape[:1]:
        raise ValueError(f"expected {len(latents_NC)} indices, got {tuple(indices_N.shape)}")
    chosen = resolve_for(
        implementation, latents_NC, codebook_KC, table_KD, code_width=codebook_KC.shape[1]
    )
    if chosen == "reference":
        with traceable_full_precision(latents_NC.device):
            return reference.straight_through_readout(
                latents_NC, codebook_KC, table_KD, indices_N, temperature, affinity
            )
    dtype = compute_dtype(latents_NC, codebook_KC)
    inputs = latents_NC.to(dtype).contiguous(), codebook_KC.to(dtype).contiguous()
    return differentiable_straight_through(
        *inputs, table_KD, indices_N, log_sum_exp_N, chosen, affinity, temperature
    )

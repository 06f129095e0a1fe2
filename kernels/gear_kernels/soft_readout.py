"""Soft read-out: the expected row of a table under a latent's soft assignment to codes."""

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
from gear_kernels.soft_readout_autograd import differentiable_soft_readout


def soft_readout(
    latents_NC: Tensor,
    codebook_KC: Tensor,
    table_KD: Tensor,
    log_sum_exp_N: Tensor | None = None,
    *,
    temperature: float = 0.1,
    affinity: Affinity = Affinity.SQUARED_DISTANCE,
    implementation: str = "auto",
) -> Tensor:
    """e_n = sum_k softmax(s[n, :] / temperature)_k table_k, with s as in `Affinity`.

    Args:
        latents_NC: (N, C), any floating dtype.
        codebook_KC: (K, C).
        table_KD: (K, D), one row a code; need not be the codebook.
        log_sum_exp_N: `Assignment.soft_log_sum_exp_N` of the same latents, codebook, affinity and
            temperature: saves Triton a pass over the codes. It carries no gradient; the gradient
            is that of the whole softmax nevertheless. The torch path does not need it.
        temperature: tau.
        affinity: the score.
        implementation: auto, triton, torch or reference; see `resolve`.

    Returns:
        (N, D) in the table's dtype; affinities and softmax are float32 (float64 for such inputs),
        sums accumulate in float32. Gradients to latents, codebook and table (the table's by the
        torch path, whatever the implementation). The backward recomputes; nothing (N, K) is
        allocated, except by the reference. Neither communicates nor synchronises. No second
        derivatives. torch.compile traces it whole.

    Raises:
        ValueError: shapes that do not fit, a temperature <= 0, an implementation that cannot run.
    """
    check_codes(latents_NC, codebook_KC)
    check_table(len(codebook_KC), table_KD)
    check_temperatures(temperature=temperature)
    chosen = resolve_for(
        implementation, latents_NC, codebook_KC, table_KD, code_width=codebook_KC.shape[1]
    )
    if chosen == "reference":
        with traceable_full_precision(latents_NC.device):
            return reference.soft_readout(latents_NC, codebook_KC, table_KD, temperature, affinity)
    dtype = compute_dtype(latents_NC, codebook_KC)
    inputs = latents_NC.to(dtype).contiguous(), codebook_KC.to(dtype).contiguous()
    return differentiable_soft_readout(
        *inputs, table_KD, log_sum_exp_N, chosen, affinity, temperature
    )

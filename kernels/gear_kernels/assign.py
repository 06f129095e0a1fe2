"""Nearest code, assignment entropy and diagnostics of N latents against K codes."""

from torch import Tensor

from gear_kernels import reference
from gear_kernels.assign_autograd import differentiable_assign
from gear_kernels.assignment import Assignment
from gear_kernels.dispatch import (
    Affinity,
    check_codes,
    check_temperatures,
    compute_dtype,
    resolve_for,
)
from gear_kernels.full_precision_matmul import traceable_full_precision


def assign(
    latents_NC: Tensor,
    codebook_KC: Tensor,
    *,
    affinity: Affinity = Affinity.SQUARED_DISTANCE,
    entropy_temperature: float = 0.01,
    soft_temperature: float = 0.1,
    implementation: str = "auto",
) -> Assignment:
    """Assign latents to codes by the affinity s[n, k] (see `Affinity`).

    indices = argmax_k s; with p = softmax(s / entropy_temperature): token_entropy = mean_n H(p_n),
    mean_probabilities = mean_n p_n. Gradients reach latents and codebook through these two.

    Args:
        latents_NC: (N, C), any floating dtype; normalised by the caller where the method says so.
        codebook_KC: (K, C).
        affinity: the score.
        entropy_temperature: temperature of the entropies.
        soft_temperature: temperature of `soft_log_sum_exp_N`.
        implementation: auto, triton, torch or reference; see `resolve`.

    Returns:
        An `Assignment` in float32 (float64 for float64 inputs), on the inputs' device. Ties go to
        the lowest index. Autocast and TF32 are off inside. Not allocated: anything (N, K), except
        by the reference. Neither communicates nor synchronises. No second derivatives.
        torch.compile traces it whole.

    Raises:
        ValueError: shapes that do not fit, a temperature <= 0, an implementation that cannot run.
    """
    check_codes(latents_NC, codebook_KC)
    temperatures = {
        "entropy_temperature": entropy_temperature,
        "soft_temperature": soft_temperature,
    }
    check_temperatures(**temperatures)
    chosen = resolve_for(implementation, latents_NC, codebook_KC, code_width=codebook_KC.shape[1])
    if chosen == "reference":
        with traceable_full_precision(latents_NC.device):
            return reference.assign(latents_NC, codebook_KC, affinity=affinity, **temperatures)
    dtype = compute_dtype(latents_NC, codebook_KC)
    inputs = latents_NC.to(dtype).contiguous(), codebook_KC.to(dtype).contiguous()
    return differentiable_assign(*inputs, chosen, affinity, entropy_temperature, soft_temperature)

"""Results of the operations with more than one output. NamedTuples, which ZeRO-3's hooks enter."""

from typing import NamedTuple

from torch import Tensor


class Assignment(NamedTuple):
    """Hard and soft assignment of N latents to K codes. float32, or float64 for such inputs.

    Gradients reach latents and codebook through `token_entropy` and `mean_probabilities_K` only.
    """

    indices_N: Tensor
    """argmax_k s, int64; the lowest index among equal codes."""
    affinity_N: Tensor
    """s of the winner."""
    soft_log_sum_exp_N: Tensor
    """log sum_k exp(s / soft_temperature): what `soft_readout` can take over."""
    token_entropy: Tensor
    """mean_n H(softmax(s / entropy_temperature)), nats; scalar, differentiable."""
    mean_probabilities_K: Tensor
    """mean_n softmax(s / entropy_temperature) over this process's tokens; differentiable."""
    effective_codes: Tensor
    """exp(H(mean_probabilities)), 1 to K; scalar on the device."""
    top1_probability: Tensor
    """mean_n max_k softmax(s): scalar on the device."""
    top1_probability_soft: Tensor
    """mean_n max_k softmax(s / soft_temperature): scalar on the device."""


class Statistics(NamedTuple):
    """What a backend's forward of `assign` hands back; u = s + |z|^2 or s, in the compute dtype."""

    indices_N: Tensor
    """argmax, int64."""
    shift_N: Tensor
    """max_k u, that the masses are relative to."""
    affinity_N: Tensor
    """s of the winner."""
    entropy_N: Tensor
    """H(p) at the entropy temperature."""
    log_mass_N: Tensor
    """log sum_k exp((u - shift) / entropy_temperature)."""
    log_mass_soft_N: Tensor
    """The same at the soft temperature."""
    log_mass_one_N: Tensor
    """The same at temperature 1."""
    mean_probabilities_K: Tensor
    """mean_n p."""

"""Codebook operations without the (N, K) matrix: index, entropy, read-outs, vocabulary loss."""

from gear_kernels.assign import assign
from gear_kernels.assignment import Assignment
from gear_kernels.cross_entropy import resolve_cross_entropy, vocabulary_cross_entropy
from gear_kernels.dispatch import Affinity, resolve, resolve_for
from gear_kernels.lfq import lfq_assign, lfq_soft_readout
from gear_kernels.soft_readout import soft_readout
from gear_kernels.straight_through import straight_through_readout

__all__ = [
    "Affinity",
    "Assignment",
    "assign",
    "lfq_assign",
    "lfq_soft_readout",
    "resolve",
    "resolve_cross_entropy",
    "resolve_for",
    "soft_readout",
    "straight_through_readout",
    "vocabulary_cross_entropy",
]

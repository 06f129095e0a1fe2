"""Hardware rates for a plan: given ones, else published peaks times an assumed utilisation."""

from typing import NamedTuple

import torch


class Peak(NamedTuple):
    """A hardware's published peak, and the share of it that a plan counts on unless told."""

    option: str
    unit: str
    scale: float
    """Of the unit, in operations or bytes a second."""
    peak: float
    share: float
    source: str


# Shares are assumptions: nothing here was measured.
PEAKS = {
    "bf16": Peak("--tflops", "TFLOP/s", 1e12, 989, 0.5, "H100 SXM, dense bf16"),
    "tf32": Peak("--tflops-tf32", "TFLOP/s", 1e12, 495, 0.5, "H100 SXM, dense TF32"),
    "fp32": Peak("--tflops-fp32", "TFLOP/s", 1e12, 67, 0.5, "H100 SXM, fp32 without TF32"),
    "memory": Peak("--memory-bandwidth", "GB/s", 1e9, 3350, 0.7, "H100 SXM, HBM3"),
    "node_network": Peak("--node-network", "GB/s", 1e9, 450, 0.7, "NVLink 4, one direction"),
    "network": Peak("--network", "GB/s", 1e9, 50, 0.7, "a 400 Gb/s port a GPU"),
    "host": Peak("--host-link", "GB/s", 1e9, 64, 0.5, "PCIe 5.0 x16, one direction"),
    "storage": Peak("--storage", "GB/s", 1e9, 12.5, 0.5, "a 100 Gb/s port a node"),
}


class Rates(NamedTuple):
    """Operations and bytes a second; of one GPU, but `storage`, which is a node's."""

    bf16: float
    tf32: float
    """Convolutions of fp32 tensors, which torch runs in TF32 unless told not to."""
    fp32: float
    """Other products of fp32 tensors."""
    memory: float
    node_network: float
    """Between the GPUs of a node."""
    network: float
    """Between nodes, a GPU's share."""
    host: float
    """Between a GPU and its host's memory."""
    storage: float
    gpus_per_node: int
    notes: tuple[str, ...]
    """Where each number comes from, for the reader."""

    def flops_per_s(self, dtype: torch.dtype, *, convolution: bool) -> float:
        """Rate of products of that dtype."""
        if dtype in (torch.bfloat16, torch.float16):
            return self.bf16
        return self.tf32 if convolution else self.fp32

    def link(self, world_size: int) -> float:
        """Bytes a second that a collective of all workers moves past its slowest link."""
        return self.node_network if world_size <= self.gpus_per_node else self.network


def make_rates(given: dict[str, float | None], gpus_per_node: int = 8) -> Rates:
    """Rates from given numbers above 0 in the units of `PEAKS`; None: the assumption."""
    values, notes = {}, []
    for name, peak in PEAKS.items():
        value = given.get(name)
        if value is None:
            value = peak.peak * peak.share
            note = f"{peak.share:.0%} of {peak.peak:g} ({peak.source}): an assumption"
        else:
            note = "as given"
        values[name] = value * peak.scale
        notes.append(f"{peak.option} {value:.4g} {peak.unit}: {note}")
    return Rates(**values, gpus_per_node=gpus_per_node, notes=tuple(notes))

"""Representation alignment: the tap, projected, against frozen teacher features.

Shapes: B images, L tokens, F teacher width. Source: arXiv 2410.06940.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def alignment_loss(projected: Sequence[Tensor], features: Sequence[Tensor]) -> Tensor:
    """-mean cosine similarity of (B, L, F) pairs, the mean over teachers; fp32 scalar."""
    losses = [
        -F.cosine_similarity(ours.float(), theirs.float(), dim=-1).mean()
        for ours, theirs in zip(projected, features, strict=True)
    ]
    return torch.stack(losses).mean()

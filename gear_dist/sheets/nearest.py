"""The k nearest images of a stream, for images that are known beforehand.

Shapes: Q queries, V views of a query, N images of a batch, F features, k neighbours.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Scaling(NamedTuple):
    """Centre and spread of each feature, so that none counts for its unit alone."""

    mean_F: Tensor
    inverse_F: Tensor
    """1 / (standard deviation * sqrt F); 0 of a feature that never changes."""

    @classmethod
    def of(cls, features_NF: Tensor) -> "Scaling":
        """Of at least two images."""
        std_F, mean_F = torch.std_mean(features_NF.double(), dim=0, correction=0)
        # Of a constant, rounding leaves about 1e-7.
        varies_F = std_F > 1e-5 * mean_F.abs()
        inverse_F = torch.where(varies_F, 1 / std_F, 0) / varies_F.sum().clamp(min=1).sqrt()
        return cls(mean_F.float(), inverse_F.float())

    def __call__(self, features_NF: Tensor) -> Tensor:
        """Features whose Euclidean distance is in standard deviations, a mean over features.

        d(x, y) = sqrt(mean_f ((x_f - y_f) / std_f)^2): about sqrt 2 of two images that have nothing
        to do with each other, 0 of two that are the same.
        """
        return (features_NF - self.mean_F) * self.inverse_F


class Nearest:
    """Keeps the k nearest so far of each query, by the nearest of its views.

    Memory is that of the queries and Q k numbers, however many images come by; with `keep`, of Q k
    images more.
    """

    def __init__(self, queries_QVF: Tensor, k: int, *, keep: bool) -> None:
        """Args:
        queries_QVF: scaled features; a query's views are as good as each other.
        k: neighbours.
        keep: whether the neighbours' pixels and names are kept.
        """
        self._queries_QVF = queries_QVF
        num = len(queries_QVF)
        self.distances_Qk = torch.full((num, k), torch.inf)
        self.views_Qk = torch.zeros(num, k, dtype=torch.int64)
        self.names: list[list[str]] = [[""] * k for _ in range(num if keep else 0)]
        self.images: list[list[Tensor]] = [[torch.empty(0)] * k for _ in range(num if keep else 0)]

    def add(self, features_NF: Tensor, names: list[str], pixels: Tensor) -> None:
        """Take a batch into account.

        Args:
            features_NF: scaled.
            names: N.
            pixels: uint8 (N, 3, H, W).
        """
        num, num_views, _ = self._queries_QVF.shape
        # The short cut by a matrix product has no digits left where the distance is near 0.
        found = torch.cdist(
            self._queries_QVF.flatten(0, 1),
            features_NF,
            compute_mode="donot_use_mm_for_euclid_dist",
        )
        by_image_QN, view_QN = found.view(num, num_views, -1).min(1)
        k = self.distances_Qk.shape[1]
        joined = torch.cat([self.distances_Qk, by_image_QN.cpu()], 1)
        views = torch.cat([self.views_Qk, view_QN.cpu()], 1)
        # Stable, so that of equal ones the first stays, whatever the batches.
        self.distances_Qk, order = joined.sort(stable=True)
        self.distances_Qk, order = self.distances_Qk[:, :k].clone(), order[:, :k]
        self.views_Qk = views.gather(1, order)
        for query in range(len(self.names)):
            places = order[query].tolist()
            known, seen = self.names[query], self.images[query]
            self.names[query] = [known[p] if p < k else names[p - k] for p in places]
            # A copy, so that a batch is not kept for one of its images.
            self.images[query] = [seen[p] if p < k else pixels[p - k].clone() for p in places]

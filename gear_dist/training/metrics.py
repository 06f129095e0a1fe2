"""Metrics between two log records: summed on the device, synchronised once for all."""

import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from gear_dist.checkpoints.shards import TensorShard, replicated
from gear_dist.distributed import collectives


class MetricWindow:
    """Sums of loss terms and counts of used codes since the last `flush`."""

    def __init__(self, num_codes: int, usage_window_tokens: int, device: torch.device):
        self._sums: dict[str, Tensor] = {}
        self._batches = 0
        self._window_tokens = usage_window_tokens
        self._device = device
        self._counts = torch.zeros(num_codes, device=device)
        self._tokens = 0
        self._history: deque[tuple[int, Tensor]] = deque()

    def add(self, metrics: dict[str, Tensor], indices: Tensor | None) -> None:
        """One micro-batch: detached scalars, and its codes. Does not synchronise."""
        for name, value in metrics.items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value
        self._batches += 1
        if indices is not None:
            flat = indices.flatten()
            self._counts.index_add_(0, flat, torch.ones_like(flat, dtype=self._counts.dtype))
            self._tokens += flat.numel()

    def flush(self, norms: dict[str, float | Tensor]) -> dict[str, float]:
        """Means over micro-batches and ranks, and codebook usage. One all-reduce, one sync.

        Empty where nothing was added since the last flush.

        Usage is the share of codes that occur in at least the last `usage_window_tokens` tokens of
        all ranks, in whole log intervals; `usage_window_tokens` of the result says how many.

        Args:
            norms: the last step's gradient norms, equal on all ranks.
        """
        if self._batches == 0:
            return {}
        names = sorted(self._sums)
        packed = torch.stack([self._sums[name].float() for name in names]) / self._batches
        sums = torch.cat([packed, self._counts])
        collectives.sum_over_ranks(sums)
        means = (sums[: len(names)] / collectives.world_size()).tolist()
        record = dict(zip(names, means, strict=True))
        record |= {name: float(value) for name, value in norms.items()}
        self._remember(sums[len(names) :], record)
        self._sums, self._batches = {}, 0
        return record

    def state_dict(self) -> dict[str, Any]:
        """State not covered by `shards`, as plain data. Call after `flush`."""
        return {"tokens": [tokens for tokens, _ in self._history]}

    def shards(self) -> Iterator[TensorShard]:
        """Counts (K,) of the log intervals of the usage window, oldest first; live."""
        for i, (_, counts) in enumerate(self._history):
            yield replicated(f"window.{i}", counts)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the intervals; their counts are zero until `shards` are filled."""
        self._history = deque((n, torch.zeros_like(self._counts)) for n in state["tokens"])

    def _remember(self, counts: Tensor, record: dict[str, float]) -> None:
        tokens = self._tokens * collectives.world_size()
        self._counts, self._tokens = torch.zeros_like(self._counts), 0
        if tokens == 0:
            return
        self._history.append((tokens, counts.clone()))
        while sum(t for t, _ in self._history) - self._history[0][0] >= self._window_tokens:
            self._history.popleft()
        total = torch.stack([c for _, c in self._history]).sum(0)
        record["codebook_usage"] = float((total > 0).float().mean())
        record["usage_window_tokens"] = float(sum(t for t, _ in self._history))


class Speedometer:
    """Images a second since the last record, and the time left."""

    def __init__(self, global_batch: int, elapsed_s: float = 0.0):
        self._global_batch = global_batch
        self._start = time.monotonic() - elapsed_s
        self._last = time.monotonic()
        self._steps = 0

    def count_step(self) -> None:
        """One optimizer step is done."""
        self._steps += 1

    @property
    def elapsed_s(self) -> float:
        """Seconds since the run began, without the time between its parts."""
        return time.monotonic() - self._start

    def read(self, steps_left: int) -> dict[str, float]:
        """Rates of the interval that ends now."""
        now = time.monotonic()
        per_step_s = (now - self._last) / max(1, self._steps)
        self._last, self._steps = now, 0
        return {
            "time_s": self.elapsed_s,
            "images_per_s": self._global_batch / max(per_step_s, 1e-9),
            "eta_s": per_step_s * steps_left,
        }

"""Progress of a training for people: step, speed, losses, time left."""

import time
from collections.abc import Callable
from typing import TextIO

from gear_dist.distributed.worker_context import TrainProgress
from gear_dist.formatting import format_duration
from gear_dist.progress import Pace, StatusLine

# Shown in this order where present; everything else is in metrics.jsonl.
MAIN_METRICS = ("cross_entropy", "align_hard", "l1", "lpips", "align_soft", "entropy")
SHORT_NAMES = {"cross_entropy": "ce", "align_hard": "align"}
NOT_LOSSES = ("images_per_s", "eta_s", "time_s", "epoch", "step", "stage")
NOT_LOSS_PREFIXES = ("learning_rate", "grad_norm", "codebook", "usage", "memory")


def main_losses(metrics: dict[str, float]) -> list[tuple[str, float]]:
    """The losses worth a place in a line; the first four numbers of unknown name otherwise."""
    known = [(name, metrics[name]) for name in MAIN_METRICS if name in metrics]
    if known:
        return known
    unknown = [
        (name, value)
        for name, value in metrics.items()
        if name not in NOT_LOSSES and not name.startswith(NOT_LOSS_PREFIXES)
    ]
    return unknown[:4]


def format_usage(metrics: dict[str, float]) -> str:
    """Codebook usage over all workers with the window it is counted over; empty where absent."""
    usage = metrics.get("codebook_usage")
    if usage is None:
        return ""
    window = metrics.get("usage_window_tokens")
    of = f" of codes in the last {window:,.0f} tokens" if window else " of codes"
    return f"{usage:.0%}{of}"


class ProgressPrinter:
    """Shows `TrainProgress` of either launcher on `stream` (default: standard output)."""

    def __init__(
        self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._line = StatusLine(stream)
        self._clock = clock
        self._pace: Pace | None = None
        self.say, self.close = self._line.say, self._line.close

    def show(self, progress: TrainProgress) -> None:
        """Update the line (terminal) or add one, and the message's own line if there is one."""
        if progress.message:
            self.say(progress.message)
        if progress.metrics:
            eta_s = self._eta(progress)
            form = _terminal_line if self._line.in_place else _plain_line
            self._line.update(lambda: form(progress, eta_s))

    def _eta(self, progress: TrainProgress) -> float:
        if self._pace is None:
            self._pace = Pace(progress.total_steps, clock=self._clock)
            self._pace.add(progress.step, timed=False)
        if "eta_s" in progress.metrics:
            return progress.metrics["eta_s"]
        self._pace.add(progress.step - self._pace.done)
        return self._pace.left_s


def _terminal_line(progress: TrainProgress, eta_s: float) -> str:
    metrics = progress.metrics
    share = progress.step / max(progress.total_steps, 1)
    parts = [f"{progress.stage} {progress.step}/{progress.total_steps} {share:.0%}"]
    if "images_per_s" in metrics:
        parts.append(f"{metrics['images_per_s']:.1f} images/s")
    parts.append(f"{format_duration(eta_s)} left")
    losses = main_losses(metrics)
    if losses:
        parts.append(
            " ".join(f"{SHORT_NAMES.get(name, name)} {value:.3f}" for name, value in losses)
        )
    usage = metrics.get("codebook_usage")
    if usage is not None:
        parts.append(f"codes {usage:.0%} (last {metrics.get('usage_window_tokens', 0):,.0f})")
    return " | ".join(parts)


def _plain_line(progress: TrainProgress, eta_s: float) -> str:
    metrics = progress.metrics
    parts = [f"step {progress.step}/{progress.total_steps}", f"stage {progress.stage}"]
    if "images_per_s" in metrics:
        parts.append(f"images/s {metrics['images_per_s']:.1f}")
    parts.append(f"eta {format_duration(eta_s)}")
    parts += [f"{name} {value:.4g}" for name, value in main_losses(metrics)]
    usage = format_usage(metrics)
    return "  ".join([*parts, f"usage {usage}"] if usage else parts)

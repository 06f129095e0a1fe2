"""Detects training that learns nothing, by metric records: zero gradients, a collapsed codebook.

Non-finite values are handled by nan_guard.py."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from gear_dist.config.run import CollapseConfig
from gear_dist.errors import NumericError

DEAD_GRADIENT = 1e-12
"""Gradient norms up to this move nothing: AdamW's eps is 1e-8."""
# A discriminator that is always right has no gradient, and recovers.
_WATCHED = ("tokenizer", "generator")


class Trouble(NamedTuple):
    """What is wrong with a record."""

    kind: str
    text: str
    """What was found and what to do about it."""


class CollapseMonitor:
    """Checks each metric record of a stage. Records are equal on all ranks, so the result is too.

    Attributes:
        troubles: how many records in a row have had a trouble, by its kind.
    """

    def __init__(self, settings: CollapseConfig, *, window_tokens: int, num_codes: int):
        """
        Args:
            settings: when training counts as collapsed.
            window_tokens: tokens that codebook usage is counted over (log.usage_window_tokens).
            num_codes: codes K.
        """
        self._settings = settings
        self._window_tokens = window_tokens
        self._num_codes = num_codes
        self.troubles: dict[str, int] = {}
        self._most_used = 0.0

    def check(self, record: Mapping[str, float]) -> list[str]:
        """Check one record.

        Returns:
            Warnings about troubles that this record is the first to have.

        Raises:
            NumericError: a trouble has lasted for `collapse.patience` records.
        """
        patience = self._settings.patience
        if patience == 0:
            return []
        found = [*self._dead_gradients(record), *self._collapsed_codebook(record)]
        self.troubles = {trouble.kind: self.troubles.get(trouble.kind, 0) + 1 for trouble in found}
        for trouble in found:
            if self.troubles[trouble.kind] >= patience:
                raise NumericError(
                    f"{trouble.text}, in {patience} records in a row (collapse.patience); the last "
                    "checkpoint predates the problem; set collapse.patience=0 to continue anyway"
                )
        return [trouble.text for trouble in found if self.troubles[trouble.kind] == 1]

    def end_stage(self) -> None:
        """The stage is over: what it leaves is what the next one starts from.

        Raises:
            NumericError: its last record was in trouble.
        """
        if self.troubles:
            raise NumericError(
                f"the stage ended with a warning ({', '.join(self.troubles)}): the last checkpoint "
                "predates it; set collapse.patience=0 to continue anyway"
            )
        self._most_used = 0.0

    def _dead_gradients(self, record: Mapping[str, float]) -> list[Trouble]:
        names = [n for n in _WATCHED if record.get(f"grad_norm_{n}", 1.0) <= DEAD_GRADIENT]
        return [
            Trouble(
                f"{name} gradient",
                f"the {name}'s gradient is zero: it learns nothing; lower optimizer.{name}_lr, or "
                "look for a loss weight that is 0",
            )
            for name in names
        ]

    def _collapsed_codebook(self, record: Mapping[str, float]) -> list[Trouble]:
        if record.get("usage_window_tokens", 0) < self._window_tokens:
            return []
        usage = record["codebook_usage"]
        self._most_used = max(self._most_used, usage)
        if usage >= self._settings.usage_floor * self._most_used:
            return []
        text = (
            f"the codebook has collapsed: {round(usage * self._num_codes)} of {self._num_codes} "
            f"codes used by the last {round(record['usage_window_tokens'])} tokens, "
            f"{round(self._most_used * self._num_codes)} at best; raise tokenizer.entropy_weight, "
            "or lower optimizer.tokenizer_lr or alignment.soft_weight"
        )
        return [Trouble("codebook", text)]

    def state_dict(self) -> dict[str, Any]:
        """What must survive a restart, as plain data."""
        return {"troubles": dict(self.troubles), "most_used": self._most_used}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.troubles, self._most_used = dict(state["troubles"]), state["most_used"]

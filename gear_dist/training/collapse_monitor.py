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


class CollapseSign(NamedTuple):
    """What is wrong with a record."""

    kind: str
    text: str
    """What was found and what to do about it."""


class CollapseMonitor:
    """Checks each metric record of a stage. Records are equal on all ranks, so the result is too.

    Attributes:
        consecutive_signs: how many records in a row have had a trouble, by its kind.
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
        self.consecutive_signs: dict[str, int] = {}
        self._most_used = 0.0

    def check(self, record: Mapping[str, float]) -> list[str]:
        """Check one record.

        Returns:
            Warnings about consecutive_signs that this record is the first to have.

        Raises:
            NumericError: a sign has lasted for `collapse.patience` records.
        """
        patience = self._settings.patience
        if patience == 0:
            return []
        found = [*self._dead_gradients(record), *self._collapsed_codebook(record)]
        self.consecutive_signs = {
            sign.kind: self.consecutive_signs.get(sign.kind, 0) + 1 for sign in found
        }
        for sign in found:
            if self.consecutive_signs[sign.kind] >= patience:
                raise NumericError(
                    f"{sign.text}, in {patience} records in a row (collapse.patience); the last "
                    "checkpoint predates the problem; set collapse.patience=0 to continue anyway"
                )
        return [sign.text for sign in found if self.consecutive_signs[sign.kind] == 1]

    def end_stage(self) -> None:
        """The stage is over: what it leaves is what the next one starts from.

        Raises:
            NumericError: its last record had a sign of collapse.
        """
        if self.consecutive_signs:
            raise NumericError(
                f"the stage ended with a warning ({', '.join(self.consecutive_signs)}): the last "
                "checkpoint predates it; set collapse.patience=0 to continue anyway"
            )
        self._most_used = 0.0

    def _dead_gradients(self, record: Mapping[str, float]) -> list[CollapseSign]:
        names = [n for n in _WATCHED if record.get(f"grad_norm_{n}", 1.0) <= DEAD_GRADIENT]
        return [
            CollapseSign(
                f"{name} gradient",
                f"the {name}'s gradient is zero: it learns nothing; lower optimizer.{name}_lr, or "
                "look for a loss weight that is 0",
            )
            for name in names
        ]

    def _collapsed_codebook(self, record: Mapping[str, float]) -> list[CollapseSign]:
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
        return [CollapseSign("codebook", text)]

    def state_dict(self) -> dict[str, Any]:
        """What must survive a restart, as plain data."""
        return {"troubles": dict(self.consecutive_signs), "most_used": self._most_used}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.consecutive_signs, self._most_used = (
            dict(state["troubles"]),
            state["most_used"],
        )

"""Which dtype a network really computed in, whatever its settings say.

Autocast can be turned off between the setting and the layers without a word: DeepSpeed 0.19.8 does
so around its engine's forward on CUDA. So the first convolution and linear layer are looked at.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from gear_dist.errors import ConfigError

WATCHED: dict[str, type[nn.Module]] = {"convolution": nn.Conv2d, "linear": nn.Linear}


class ComputeDtypes:
    """Takes the dtype of the first layer of each watched kind at its first forward.

    Attributes:
        found: dtype by kind of layer, such as `bfloat16`; kinds that the network lacks are absent.
    """

    def __init__(self, module: nn.Module) -> None:
        self.found: dict[str, str] = {}
        self._hooks: list[Any] = []
        for kind, layer in WATCHED.items():
            first = next((m for m in module.modules() if isinstance(m, layer)), None)
            if first is not None:
                self._hooks.append(first.register_forward_hook(self._take(kind)))

    def _take(self, kind: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            self.found.setdefault(kind, str(output.dtype).removeprefix("torch."))

        return hook

    def take(self) -> dict[str, str]:
        """What was found by now, once; nothing from then on."""
        found = dict(self.found) if self._hooks else {}
        if found:
            self.close()
        return found

    def close(self) -> None:
        """Remove the hooks; what they found stays."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()


def check_compute_dtypes(precision: str, found: Mapping[str, Mapping[str, str]]) -> None:
    """Compare what was computed in with what was asked for.

    Args:
        precision: bf16 or fp32.
        found: `ComputeDtypes.found` by network.

    Raises:
        ConfigError: a layer computed in another dtype.
    """
    expected = {"bf16": "bfloat16", "fp32": "float32"}[precision]
    for network, kinds in found.items():
        for kind, dtype in kinds.items():
            if dtype != expected:
                raise ConfigError(
                    f"engine.precision={precision}: the {network}'s first {kind} layer computed in "
                    f"{dtype}, not {expected}: autocast was turned off on the way (compare the "
                    "installed deepspeed with requirements.lock), or use engine.precision=fp32"
                )

"""What a run starts from: the networks of another run, or of an imported model.

`load_config` takes the architecture over from there (see `stages.start_from`); here it is checked,
and the weights are read.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gear_dist.config import NOT_IN_WEIGHTS, RunConfig
from gear_dist.config_files import to_dict
from gear_dist.errors import ConfigError, DataError
from gear_dist.model_folder import ModelFolder, open_model


def open_start(config: RunConfig) -> ModelFolder | None:
    """The folder of `stages.start_from`, checked against the configuration; None: there is none.

    Raises:
        DataError: it is no run or model, or lacks the tokenizer.
        ConfigError: a setting that shapes a network differs from the folder's.
    """
    stages = config.stages
    if not stages.start_from:
        return None
    if not Path(stages.start_from).is_dir():
        raise DataError(f"stages.start_from={stages.start_from}: no such folder")
    model = open_model(stages.start_from)
    weights = {name: file for name, file in model.weights.items() if name in stages.start_networks}
    model = model._replace(weights=weights)
    if "tokenizer" in stages.start_networks:
        model.require("tokenizer")
    differing = [text for name in weights for text in _differences(name, config, model.config)]
    if differing:
        raise ConfigError(
            f"stages.start_from={stages.start_from} has other networks: {', '.join(differing)}; "
            "leave these settings out, or the network out of stages.start_networks"
        )
    return model


def _differences(network: str, ours: RunConfig, theirs: RunConfig) -> Iterator[str]:
    if network not in NOT_IN_WEIGHTS:
        return
    free = {*NOT_IN_WEIGHTS[network], "tap_layer"}
    mine, other = (_section(config, network) for config in (ours, theirs))
    for name, value in mine.items():
        if name not in free and value != other[name]:
            yield f"{network}.{name}={value} ({other[name]} there)"


def _section(config: RunConfig, network: str) -> dict[str, Any]:
    return to_dict(getattr(config, network))


def load_start(config: RunConfig) -> dict[str, Any]:
    """The networks that a new run starts from, as `Networks` takes them; those it lacks are new.

    Raises:
        UserError: see `open_start`; or weights that do not fit their configuration.
    """
    from gear_dist.weights import check_fit, join_states, read_weights

    model = open_start(config)
    if model is None:
        return {}
    published = {name: read_weights(file) for name, file in model.weights.items()}
    if "generator" not in published:
        published.pop("projectors", None)
    for name, state in published.items():
        if name != "projectors":
            check_fit(name, state, config, str(model.weights[name]))
    return join_states(published)

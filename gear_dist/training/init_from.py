"""What a run starts from: the networks of another run, or of an imported model.

`load_config` copies the architecture from there (see `stages.init_from`); here it is checked,
and the weights are read.
"""

from pathlib import Path
from typing import Any

from gear_dist.config.compare import differing_architecture
from gear_dist.config.schema import RunConfig
from gear_dist.config.training import AlignmentConfig, StagesConfig
from gear_dist.errors import ConfigError, DataError
from gear_dist.inference.model_folder import ModelFolder, open_model
from gear_dist.storage.paths import local_path
from gear_dist.training.conditions import Conditions


def open_init_from(config: RunConfig) -> ModelFolder | None:
    """The folder of `stages.init_from`, checked against the configuration; None: there is none.

    Raises:
        DataError: it is not a run or model, or lacks the tokenizer.
        ConfigError: a setting that shapes a network differs from the folder's.
    """
    stages = config.stages
    if not stages.init_from:
        return None
    if not local_path(stages.init_from, "stages.init_from").is_dir():
        raise DataError(f"stages.init_from={stages.init_from}: no such folder")
    model = open_model(stages.init_from)
    weights = _taken(model, stages, config.alignment)
    model = model._replace(weights=weights)
    if "tokenizer" in stages.init_networks:
        model.require("tokenizer")
    differing = [
        text for name in weights for text in differing_architecture(name, config, model.config)
    ]
    if differing:
        raise ConfigError(
            f"stages.init_from={stages.init_from} has other networks: {', '.join(differing)}; "
            "leave these settings out, or the network out of stages.init_networks"
        )
    return model


def _taken(model: ModelFolder, stages: StagesConfig, alignment: AlignmentConfig) -> dict[str, Path]:
    """Files of the networks that the run takes over, projectors with their generator alone."""
    wanted = set(stages.init_networks)
    if "generator" not in wanted & set(model.weights) or not alignment.enabled:
        wanted.discard("projectors")
    return {name: file for name, file in model.weights.items() if name in wanted}


def load_init_from(config: RunConfig) -> dict[str, Any]:
    """The networks that a new run starts from, as `Networks` takes them; those it lacks are new.

    Raises:
        UserError: see `open_init_from`; or weights that do not fit their configuration.
    """
    from gear_dist.inference.weights import check_fit, join_states, read_weights
    from gear_dist.models.generator.class_to_text import text_state

    model = open_init_from(config)
    if model is None:
        return {}
    published = {name: read_weights(file) for name, file in model.weights.items()}
    if "generator" in published and config.generator.condition == "text":
        generator = published["generator"]
        published["generator"] = text_state(generator, config.generator, config.run.seed)
    for name, state in published.items():
        check_fit(name, state, config, str(model.weights[name]))
    return join_states(published)


def check_initial_encoder(config: RunConfig, conditions: Conditions) -> None:
    """Compare the run's text encoder with the one that the initial generator was trained with.

    Raises:
        ConfigError: another one.
    """
    from gear_dist.inference.text_weights import read_encoder_fingerprint

    model = open_init_from(config)
    if model is not None and "generator" in model.weights:
        weights = model.weights["generator"]
        conditions.check(read_encoder_fingerprint(weights), f"stages.init_from ({weights})")

"""Public checkpoints to a model folder that every command takes."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gear_dist.config.loading import load_config
from gear_dist.config.models import TokenizerConfig
from gear_dist.config.schema import RunConfig, architecture_settings
from gear_dist.config.training import INIT_NETWORKS
from gear_dist.errors import ConfigError, DataError
from gear_dist.inference.model_folder import CARD_NAME, create_model_folder, write_model_config
from gear_dist.inference.weights import check_fit, write_weights
from gear_dist.interop.detect_format import Copy, Dropped, Found, Recognised, recognise
from gear_dist.interop.hub import find_source
from gear_dist.interop.infer_config import infer_settings
from gear_dist.interop.load_checkpoint import read_checkpoint
from gear_dist.interop.model_card import Provenance, import_card
from gear_dist.storage.atomic import write_file, write_text
from gear_dist.storage.json_files import to_json

REPORT_NAME = "import.json"
PUBLISHED_TEXT_TOKENIZER = "BinLin203/GEAR-VQ/gear-vq.pt"


class ImportedNetwork(NamedTuple):
    """A network that was taken from a checkpoint."""

    network: str
    source: str
    key: str
    """Where in the file."""
    num_tensors: int
    num_parameters: int


class ImportReport(NamedTuple):
    """What an import used, dropped and missed."""

    used: list[ImportedNetwork]
    dropped: dict[str, list[Dropped]]
    """By source."""
    missing: list[str]
    """Networks that no source holds; a run makes new ones."""
    notes: list[str]
    """What a user of the model should know."""

    def lines(self) -> list[str]:
        """The report for people."""
        lines = [
            f"used: {item.network} ({item.num_parameters:,} parameters in {item.num_tensors} "
            f"tensors, {item.key} of {item.source})"
            for item in self.used
        ]
        for source, dropped in self.dropped.items():
            lines += [f"dropped: {item.name} of {source}: {item.reason}" for item in dropped]
        lines.append(f"missing: {', '.join(self.missing) or 'nothing'}")
        return lines + [f"note: {note}" for note in self.notes]

    def to_json(self) -> dict[str, Any]:
        """The report for machines."""
        return {
            "used": [item._asdict() for item in self.used],
            "dropped": {
                source: [item._asdict() for item in dropped]
                for source, dropped in self.dropped.items()
            },
            "missing": self.missing,
            "notes": self.notes,
        }


def import_checkpoints(
    sources: Sequence[str], out: Path, *, copy: Copy = "ema", overrides: Sequence[str] = ()
) -> ImportReport:
    """Write the networks of public checkpoints as a model folder.

    Args:
        sources: local files, or hub files (see `find_source`); no two with the same network.
        out: the folder, new or empty.
        copy: which of two copies of a network to take.
        overrides: `key=value` for what shapes do not reveal, such as generator.num_heads.

    Raises:
        DataError: a source cannot be read, holds no network, or does not fit any configuration.
        ConfigError: `out` is taken, sources collide, an override is wrong.
    """
    found, files, dropped, options = _find_networks(sources, copy)
    config = _configuration(found, files, options, overrides)
    for name, item in found.items():
        check_fit(name, item.state, config, files[name])
    create_model_folder(out)
    used = [_write(out, item, files[name]) for name, item in found.items()]
    missing = [name for name in INIT_NETWORKS if name not in found]
    report = ImportReport(used, dropped, missing, _notes(config, found))
    write_file(out / REPORT_NAME, (to_json(report.to_json(), indent=2) + "\n").encode())
    origins = [Provenance(item.network, item.source, item.key) for item in used]
    write_text(out / CARD_NAME, import_card(out.name, config, origins, report.lines()))
    write_model_config(out, config, found)
    return report


def _notes(config: RunConfig, found: Mapping[str, Found]) -> list[str]:
    """Of a text-to-image generator: its dead text attention, and the tokenizer that it lacks."""
    if "generator" not in found or config.generator.condition != "text":
        return []
    notes = []
    if config.generator.text_rotary == "zeros":
        notes.append(
            "generator.text_rotary=zeros: queries and keys of its text positions are dead, as in "
            "all published weights; set identity to train them from here"
        )
    encoder = config.text_encoder
    notes.append(
        f"text_encoder: {encoder.path}, {encoder.max_tokens} slots, padding {encoder.padding}"
        ", as far as the file tells; others by --set text_encoder.path=... and so on"
    )
    if "tokenizer" not in found:
        notes.append(
            "its tokenizer is not in the file: import it along; that of the published model is "
            f"{PUBLISHED_TEXT_TOKENIZER}"
        )
    return notes


class _Sources(NamedTuple):
    """What all sources hold together."""

    found: dict[str, Found]
    files: dict[str, str]
    """The source of each network."""
    dropped: dict[str, list[Dropped]]
    """By source."""
    options: dict[str, Any]
    """Of the generator's training."""


def _find_networks(sources: Sequence[str], copy: Copy) -> _Sources:
    found: dict[str, Found] = {}
    files: dict[str, str] = {}
    dropped: dict[str, list[Dropped]] = {}
    options: dict[str, Any] = {}
    for source in sources:
        recognised = _read(source, copy)
        dropped[source] = recognised.dropped
        for item in recognised.networks:
            if item.network in found:
                raise ConfigError(
                    f"{source}: has a {item.network}, and so has {files[item.network]}: import "
                    "them into folders of their own"
                )
            found[item.network], files[item.network] = item, source
            if item.network == "generator":
                options = dict(recognised.options)
    if "projectors" in found and "generator" not in found:
        alone = Dropped(found.pop("projectors").source, "alignment heads without their generator")
        dropped[files["projectors"]].append(alone)
    if not found:
        raise DataError(f"{', '.join(sources)}: only alignment heads, and no generator of theirs")
    return _Sources(found, files, dropped, options)


def _read(source: str, copy: Copy) -> Recognised:
    checkpoint = read_checkpoint(find_source(source))
    try:
        return recognise(checkpoint, copy)
    except DataError as error:
        raise DataError(f"{source}: {error}") from None


def _configuration(
    found: Mapping[str, Found],
    files: Mapping[str, str],
    options: Mapping[str, Any],
    overrides: Sequence[str],
) -> RunConfig:
    """The configuration whose networks have these shapes."""
    settings: dict[str, dict[str, Any]] = {}
    for name, item in found.items():
        section, _ = architecture_settings(name)
        try:
            settings[section] = infer_settings(name, item.state)
        except DataError as error:
            raise DataError(f"{files[name]}: {error}") from None
    if "generator" in found:
        if settings["generator"].get("condition") == "text":
            for section, values in _from_options(options).items():
                settings.setdefault(section, {}).update(values)
        _match_codes(found["generator"], settings, files)
    words = [
        f"{section}.{name}={value}"
        for section, values in settings.items()
        for name, value in values.items()
    ]
    config = load_config(None, [*words, *overrides])
    if any(word.startswith("data.image_size=") for word in overrides):
        return config
    size = _image_size(found, config.tokenizer, config.data.image_size)
    return load_config(None, [*words, f"data.image_size={size}", *overrides])


def _from_options(options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What the options of its training say of a text-to-image generator and shapes do not."""
    settings: dict[str, dict[str, Any]] = {"generator": {}, "text_encoder": {"padding": "right"}}
    if (mask := options.get("text_attn")) in ("causal", "prefix"):
        settings["generator"]["text_mask"] = mask
    if isinstance(length := options.get("text_max_len"), int) and length > 0:
        settings["text_encoder"]["max_tokens"] = length
    # There it is a folder of the machine that trained, named after the model.
    name = str(options.get("text_encoder", "")).rstrip("/").rpartition("/")[2]
    if re.fullmatch(r"Qwen3-[\w.]+", name):
        settings["text_encoder"]["path"] = f"Qwen/{name}"
    return settings


def _match_codes(
    generator: Found, settings: dict[str, dict[str, Any]], files: Mapping[str, str]
) -> None:
    """The generator's number of codes, which is the tokenizer's.

    Raises:
        DataError: the two have not the same number.
    """
    num_codes = generator.state["tok_embeddings.weight"].shape[0]
    known = settings.setdefault("tokenizer", {}).setdefault("codebook_size", num_codes)
    if known != num_codes:
        raise DataError(
            f"{files['generator']}: its generator has {num_codes} codes, and the tokenizer of "
            f"{files['tokenizer']} {known}: they do not belong together"
        )


def _image_size(found: Mapping[str, Found], tokenizer: TokenizerConfig, configured: int) -> int:
    """Pixels that a stored rotary table stands for, else the published 256 or the configured."""
    table = found["generator"].extras.get("freqs_cis") if "generator" in found else None
    if table is None:
        return configured
    return math.isqrt(table[0] - 1) * tokenizer.downsampling


def _write(out: Path, item: Found, source: str) -> ImportedNetwork:
    count = sum(value.numel() for value in item.state.values())
    metadata = {"source": source, "key": item.source}
    write_weights(out / f"{item.network}.safetensors", item.state, metadata)
    return ImportedNetwork(item.network, source, item.source, len(item.state), count)

"""Text models of the transformers library as encoders: what all families share.

Captions run at their own lengths: sorted, and a few together, so that what little padding there is
stays within a bucket. Shapes: see `base`; S tokens of a bucket's longest caption.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from gear_dist.config.text import TextEncoderConfig
from gear_dist.errors import ConfigError
from gear_dist.models.library_files import explained, find_source, quiet, read_model
from gear_dist.models.text_encoders.base import CaptionFeatures, EncoderSize, TextEncoder

SETTING = "text_encoder"
BUCKET_TOKENS = 4096
"""Most tokens, padding included, that go through the model at once."""
MAX_PADDING_SHARE = 0.1
"""Most padding of a bucket; a longer caption begins the next one."""


class Slots(NamedTuple):
    """A caption as the model reads it."""

    ids: list[int]
    places: list[int]
    hidden: bool
    """Whether the last one is padding, which no other sees."""


class LibraryTextEncoder(TextEncoder):
    """A model of the library with its tokenizer. A family sets the class attributes."""

    models: ClassVar[Mapping[str, str]]
    """The library's class by `model_type` of config.json."""
    example: ClassVar[str]
    """A hub name."""
    blocks: ClassVar[str]
    """Where the model has its blocks, a ModuleList."""
    final_norm: ClassVar[str]
    """Where it has the norm after them."""
    takes_positions: ClassVar[bool] = True
    """Whether tokens can be given places of their own, which padding needs."""
    queries: ClassVar[str] = "q_proj.weight"
    """How the weights of a block's queries are called."""
    fixed_sizes: ClassVar[Mapping[str, Any]] = {}
    """Values of config.json that are replaced."""
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """config.json of published models by hub name, as far as sizes depend on it."""

    def __init__(self, config: TextEncoderConfig, model: Any, tokenizer: Any) -> None:
        """Take a model and a tokenizer of the library over; what features do not need is dropped.

        Raises:
            ConfigError: they do not fit the settings.
        """
        super().__init__(config)
        self.model = model
        self.tokenizer = tokenizer
        self._kept: dict[int, Tensor] = {}
        self._check()
        self.width = len(config.layers) * self.hidden_size
        self._pad = next(
            (i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0
        )
        self._cut(config, model)
        for layer in config.layers:
            if layer:
                block = model.get_submodule(self.blocks)[layer - 1]
                block.register_forward_hook(self._keep(layer))
        self.freeze()

    @classmethod
    def _cut(cls, config: TextEncoderConfig, model: Any) -> None:
        """Drop the blocks behind those whose output is read, and the norm after them."""
        if 0 not in config.layers:
            del model.get_submodule(cls.blocks)[max(config.layers) :]
            model.set_submodule(cls.final_norm, nn.Identity())

    @classmethod
    def measure(cls, config: TextEncoderConfig) -> EncoderSize:
        """See `TextEncoder.measure`; of published sizes, or those of config.json.

        Raises:
            ConfigError: config.json is not reachable, damaged, or of another family.
        """
        from transformers.initialization import no_init_weights

        sizes_json = cls.published.get(config.path)
        if sizes_json is None:
            model_class, sizes = cls._read_sizes(config)
        else:
            model_class = cls._model_class(config, sizes_json["model_type"])
            given = {key: value for key, value in sizes_json.items() if key != "model_type"}
            sizes = model_class.config_class(**given, **cls.fixed_sizes)
        with no_init_weights():  # it looks at values, which tensors without memory lack
            model = model_class(sizes)
        model.tie_weights()  # which the library leaves out where it does not initialise
        cls._cut(config, model)
        blocks = model.get_submodule(cls.blocks)
        linear = [part for part in model.modules() if isinstance(part, nn.Linear)]
        queries = (p for name, p in blocks.named_parameters() if name.endswith(cls.queries))
        return EncoderSize(
            sum(parameter.numel() for parameter in model.parameters()),
            sum(part.weight.numel() for part in linear),
            len(blocks),
            next((len(weight_OI) for weight_OI in queries), 0),
        )

    @classmethod
    def _read_sizes(cls, config: TextEncoderConfig) -> tuple[Any, Any]:
        """The library's class, and config.json of a local folder or hub name."""
        from transformers import PreTrainedConfig

        source = find_source(config.path, SETTING, cls.example)
        revision = {"revision": config.revision} if config.revision else {}
        with cls._reading(config):
            sizes_json, _ = PreTrainedConfig.get_config_dict(source, **revision)
            if not sizes_json:
                raise OSError("there is no config.json")
        model_class = cls._model_class(config, sizes_json.get("model_type", "unnamed"))
        with cls._reading(config):
            sizes = model_class.config_class.from_pretrained(source, **revision, **cls.fixed_sizes)
        return model_class, sizes

    @classmethod
    def load(cls, config: TextEncoderConfig, dtype: torch.dtype) -> Self:
        """The encoder of a local folder or a hub name."""
        from transformers import AutoTokenizer

        source = find_source(config.path, SETTING, cls.example)
        revision = {"revision": config.revision} if config.revision else {}
        model_class, sizes = cls._read_sizes(config)
        with cls._reading(config):
            model = read_model(
                model_class, source, config.path, SETTING, config=sizes, dtype=dtype, **revision
            )
            tokenizer = AutoTokenizer.from_pretrained(source, **revision)
        return cls(config, model, tokenizer)

    @classmethod
    @contextmanager
    def _reading(cls, config: TextEncoderConfig) -> Iterator[None]:
        with explained(config.path, SETTING, f"{SETTING}.name=words"), quiet():
            yield

    @classmethod
    def _model_class(cls, config: TextEncoderConfig, model_type: str) -> Any:
        import transformers

        if model_type not in cls.models:
            raise ConfigError(
                f"{SETTING}.path={config.path} holds a {model_type!r} model, which {SETTING}.name="
                f"{config.name} does not read: use one of its family, such as {cls.example}"
            )
        return getattr(transformers, cls.models[model_type])

    @property
    def hidden_size(self) -> int:
        """Width of a token in the model."""
        return self.model.config.hidden_size

    @property
    def dtype(self) -> torch.dtype:
        """See `TextEncoder.dtype`."""
        return self.model.dtype

    def num_rows(self, tokens: Sequence[int]) -> int:
        """See `TextEncoder.num_rows`; the padding slot is one."""
        return len(self._slots(tokens).ids)

    @property
    def max_positions(self) -> int | None:
        """Tokens that the model can take; None: any number."""
        return None

    def _check(self) -> None:
        config, depth = self.config, len(self.model.get_submodule(self.blocks))
        if max(config.layers) > depth:
            raise ConfigError(
                f"{SETTING}.layers={list(config.layers)} is beyond the depth: {config.path} has "
                f"{depth} blocks"
            )
        if self.max_positions is not None and config.max_tokens > self.max_positions:
            raise ConfigError(
                f"{SETTING}.max_tokens={config.max_tokens}, and {config.path} takes at most "
                f"{self.max_positions}: set {SETTING}.max_tokens={self.max_positions}"
            )
        if config.padding != "none" and not self.takes_positions:
            raise ConfigError(
                f"{SETTING}.padding={config.padding}: {SETTING}.name={config.name} knows positions "
                f"only by their distance: use {SETTING}.padding=none"
            )
        if config.prompt == "chat" and not getattr(self.tokenizer, "chat_template", None):
            raise ConfigError(
                f"{SETTING}.prompt=chat: the tokenizer of {config.path} has no chat template: use "
                f"{SETTING}.prompt=raw"
            )
        if len(self.tokenizer) > self.model.get_input_embeddings().num_embeddings:
            raise ConfigError(
                f"{SETTING}.path={config.path}: its tokenizer has {len(self.tokenizer):,} tokens "
                f"and its model {self.model.get_input_embeddings().num_embeddings:,}: they do not "
                "belong together"
            )

    def tokenize(self, captions: Sequence[str]) -> list[list[int]]:
        """See `TextEncoder.tokenize`."""
        texts = list(captions)
        chat = self.config.prompt == "chat"
        if chat:
            texts = [
                self.tokenizer.apply_chat_template(
                    [{"role": "user", "content": text}],
                    tokenize=False,
                    add_generation_prompt=True,
                    enable_thinking=False,
                )
                for text in texts
            ]
        # The template has the special tokens already.
        found = self.tokenizer(
            texts,
            add_special_tokens=not chat,
            truncation=True,
            max_length=self.config.max_tokens,
            padding=False,
        )
        return [list(ids) for ids in found["input_ids"]]

    def encode(self, tokens: Sequence[Sequence[int]]) -> list[CaptionFeatures]:
        """See `TextEncoder.encode`."""
        found: dict[int, CaptionFeatures] = {}
        slotted = [self._slots(ids) for ids in tokens]
        lengths = [len(slots.ids) for slots in slotted]
        alone = self.config.batching == "alone"
        for bucket in [[i] for i in range(len(lengths))] if alone else make_buckets(lengths):
            features_BSF = self._run([slotted[i] for i in bucket])
            for features_SF, i in zip(features_BSF, bucket, strict=True):
                slots = slotted[i]
                found[i] = CaptionFeatures(features_SF[: len(slots.ids)], slots.hidden)
        return [found[i] for i in range(len(tokens))]

    def _slots(self, ids: Sequence[int]) -> Slots:
        """A caption's tokens and places, with the padding slot that `text_encoder.padding` asks."""
        padding, length, last = self.config.padding, len(ids), self.config.max_tokens - 1
        if (padding == "right" and length <= last) or (padding == "left" and not ids):
            return Slots([*ids, self._pad], [*range(length), last], True)
        ids = list(ids) or [self._pad]
        first = last + 1 - length if padding == "left" else 0
        return Slots(ids, list(range(first, first + len(ids))), False)

    def _run(self, bucket: Sequence[Slots]) -> Tensor:
        """Features (B, S, F)."""
        size = max(len(slots.ids) for slots in bucket)
        ids, places, seen = [], [], []
        for slots in bucket:
            rest = size - len(slots.ids)
            ids.append([*slots.ids, *[self._pad] * rest])
            places.append([*slots.places, *[slots.places[-1]] * rest])
            visible = len(slots.ids) - slots.hidden
            seen.append([1] * visible + [0] * (size - visible))
        device = self.model.device
        options = {"position_ids": torch.tensor(places, device=device)}
        output = self.model(
            input_ids=torch.tensor(ids, device=device),
            # Always given: without it the library takes gaps between positions for the seams of
            # several texts in one row.
            attention_mask=torch.tensor(seen, device=device),
            **(options if self.takes_positions else {}),
        ).last_hidden_state
        kept = [self._kept.pop(layer) if layer else output for layer in self.config.layers]
        return torch.cat(kept, dim=-1)

    def _keep(self, layer: int) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            self._kept[layer] = output[0] if isinstance(output, tuple) else output

        return hook


def make_buckets(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices of captions that go through the model together, of similar lengths."""
    bucket: list[int] = []
    real = 0
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        size = lengths[index] * (len(bucket) + 1)
        padding = size - real - lengths[index]
        if bucket and (size > BUCKET_TOKENS or padding > MAX_PADDING_SHARE * size):
            yield bucket
            bucket, real = [], 0
        bucket.append(index)
        real += lengths[index]
    if bucket:
        yield bucket

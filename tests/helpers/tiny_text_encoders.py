"""Random text models of every family, a few blocks small, with tokenizers, as folders hold them."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

WIDTH = 16
BLOCKS = 3
_TEXT = (
    "a red circle above two blue squares",
    "green triangles on a yellow ground, striped and dotted",
    "a photo of a cat that sits beside a dog",
)
_SIZES: dict[str, Any] = {"hidden_size": WIDTH, "num_attention_heads": 2, "intermediate_size": 24}
CHAT = (
    "{% for message in messages %}<|user|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|model|>{% endif %}"
)


class TinyTextEncoder(NamedTuple):
    """A model as a checkpoint holds it, its tokenizer, and its `text_encoder.name`."""

    name: str
    whole: Any
    tokenizer: Any


def byte_tokenizer(*, start: str = "", end: str = "", pad: str = "<pad>") -> Any:
    """Byte pairs of a few captions, as the public tokenizers are made; any text has tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token in dict.fromkeys((pad, start, end)) if token]
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXT, trainer)
    if start or end:
        numbers = [(token, tokenizer.token_to_id(token)) for token in (start, end) if token]
        template = [token for token in (start, "$A", end) if token]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=" ".join(template), special_tokens=numbers
        )
    ends = {"eos_token": end} if end else {}
    return hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=pad, **ends)


def _qwen3() -> TinyTextEncoder:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT
    config = hf.Qwen3Config(
        **_SIZES,
        vocab_size=320,
        num_hidden_layers=BLOCKS,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=512,
    )
    return TinyTextEncoder("qwen3", hf.Qwen3ForCausalLM(config), tokenizer)


def _t5() -> TinyTextEncoder:
    config = hf.T5Config(
        vocab_size=320, d_model=WIDTH, d_kv=8, d_ff=24, num_layers=BLOCKS, num_heads=2
    )
    return TinyTextEncoder("t5", hf.T5ForConditionalGeneration(config), byte_tokenizer(end="</s>"))


def _t5gemma() -> TinyTextEncoder:
    half = {
        **_SIZES,
        "vocab_size": 320,
        "num_hidden_layers": BLOCKS,
        "num_key_value_heads": 1,
        "head_dim": 8,
    }
    config = hf.T5GemmaConfig(encoder=half, decoder=half, vocab_size=320)
    tokenizer = byte_tokenizer(start="<bos>")
    return TinyTextEncoder("t5gemma", hf.T5GemmaForConditionalGeneration(config), tokenizer)


def _clip() -> TinyTextEncoder:
    text = {**_SIZES, "vocab_size": 320, "num_hidden_layers": BLOCKS, "eos_token_id": 1}
    text |= {"max_position_embeddings": 77}
    vision = {**_SIZES, "num_hidden_layers": 1, "image_size": 8, "patch_size": 4}
    config = hf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    tokenizer = byte_tokenizer(start="<|start|>", end="<|end|>", pad="<|end|>")
    return TinyTextEncoder("clip", hf.CLIPModel(config), tokenizer)


FAMILIES = {"qwen3": _qwen3, "t5": _t5, "t5gemma": _t5gemma, "clip": _clip}


def save_text_encoder(name: str, folder: Path, *, seed: int = 0) -> TinyTextEncoder:
    """Write a family's folder as the library does; weights far enough from zero to matter."""
    torch.manual_seed(seed)
    made = FAMILIES[name]()
    with torch.no_grad():
        for parameter in made.whole.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    made.whole.eval().save_pretrained(folder)
    made.tokenizer.save_pretrained(folder)
    return made

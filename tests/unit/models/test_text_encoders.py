"""Text encoders of every family against the library's own padded passes, and what they refuse."""

import dataclasses
import json

import pytest
import torch

from gear_dist.config.text import TextEncoderConfig
from gear_dist.errors import ConfigError
from gear_dist.models.library_files import UnreachableError
from gear_dist.models.text_encoders import TEXT_ENCODERS, load_text_encoder
from gear_dist.models.text_encoders.fingerprint import (
    GOLDEN_PROMPTS,
    Fingerprint,
    check_fingerprint,
    take_fingerprint,
)
from gear_dist.models.text_encoders.library import make_buckets
from gear_dist.models.text_encoders.words import count_words, split_words, write_vocabulary
from reference_numbers import assert_close
from refusals import refused
from tiny_text_encoders import BLOCKS, FAMILIES, WIDTH, save_text_encoder

CPU = torch.device("cpu")
CAPTIONS = [
    "a red circle",
    "a photo of a cat that sits beside a dog, and two blue squares above them",
    "dots",
    "a red circle",
    "green triangles on a yellow ground",
]
MODEL_OF = {
    "qwen3": lambda whole: whole.model,
    "t5": lambda whole: whole.encoder,
    "t5gemma": lambda whole: whole.get_encoder(),
    "clip": lambda whole: whole.text_model,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Family to folder and model."""
    made = {}
    for name in FAMILIES:
        folder = tmp_path_factory.mktemp(name)
        made[name] = (folder, save_text_encoder(name, folder))
    return made


def settings(folders, name: str, **changes) -> TextEncoderConfig:
    changes = {"max_tokens": 48} | changes
    return TextEncoderConfig(name=name, path=str(folders[name][0]), **changes)


def load(config: TextEncoderConfig, width: int = WIDTH):
    return load_text_encoder(config, width=width, device=CPU)


def padded(made, captions: list[str], max_tokens: int, side: str = "right"):
    """All slots by the library, as a training with padding runs it: features and mask."""
    made.tokenizer.padding_side = side
    found = made.tokenizer(
        captions,
        max_length=max_tokens,
        padding="max_length",
        truncation=True,
        return_tensors="pt",
    )
    model = MODEL_OF[made.name](made.whole)
    with torch.no_grad():
        output = model(input_ids=found["input_ids"], attention_mask=found["attention_mask"])
    return output.last_hidden_state, found["attention_mask"].bool()


def rows(condition) -> list[torch.Tensor]:
    return list(condition.features_MF.split(condition.lengths))


@pytest.mark.parametrize("name", FAMILIES)
def test_features_are_the_librarys_at_real_lengths(name, folders):
    features, mask = padded(folders[name][1], CAPTIONS, 48)
    encoder = load(settings(folders, name))
    condition = encoder(CAPTIONS)
    assert condition.lengths == tuple(mask.sum(1).tolist())
    assert not any(condition.hidden)
    for i, ours in enumerate(rows(condition)):
        assert_close(ours, features[i][mask[i]], 1e-4, CAPTIONS[i])
    assert not encoder.training
    assert not any(p.requires_grad for p in encoder.train().parameters())


@pytest.mark.parametrize("name", ["qwen3", "t5gemma", "clip"])
def test_the_padding_slot_of_the_published_weights(name, folders):
    """The last of all slots, where a generator trained with padding predicts the first token."""
    features, mask = padded(folders[name][1], CAPTIONS, 14)
    condition = load(settings(folders, name, max_tokens=14, padding="right"))(CAPTIONS)
    short = [not row[-1] for row in mask.tolist()]
    assert any(short)
    assert not all(short)
    assert list(condition.hidden) == short
    for i, ours in enumerate(rows(condition)):
        kept = mask[i].clone()
        kept[-1] = True
        assert_close(ours, features[i][kept], 1e-4, CAPTIONS[i])


def test_left_padding_is_no_padding_but_for_the_empty_caption(folders):
    captions = [*CAPTIONS, ""]
    none = load(settings(folders, "qwen3"))(captions)
    left = load(settings(folders, "qwen3", padding="left"))(captions)
    assert_close(left.features_MF[:-1], none.features_MF[:-1], 1e-3, "turned alike")
    assert (none.hidden[-1], left.hidden[-1]) == (False, True)
    assert none.lengths[-1] == left.lengths[-1] == 1


@pytest.mark.parametrize("name", FAMILIES)
def test_the_empty_caption(name, folders):
    encoder = load(settings(folders, name))
    condition = encoder(["", "dots"])
    assert condition.lengths[0] >= 1
    assert torch.equal(condition.null_TF, encoder([""]).features_MF)
    assert_close(rows(condition)[0], condition.null_TF, 1e-5, "the null condition")
    assert torch.isfinite(condition.null_TF).all()


@pytest.mark.parametrize("name", FAMILIES)
def test_earlier_layers_before_the_final_norm(name, folders):
    whole = MODEL_OF[name](folders[name][1].whole)
    tokenizer = folders[name][1].tokenizer
    ids = torch.tensor([tokenizer(CAPTIONS[1])["input_ids"]])
    with torch.no_grad():
        output = whole(input_ids=ids, output_hidden_states=True)
    states = output.hidden_states
    early = load(settings(folders, name, layers=(2,)))
    assert_close(early([CAPTIONS[1]]).features_MF, states[2][0], 1e-4, "after two blocks")
    several = load(settings(folders, name, layers=(1, 0)), 2 * WIDTH)
    joined = torch.cat([states[1][0], output.last_hidden_state[0]], dim=-1)
    assert_close(several([CAPTIONS[1]]).features_MF, joined, 1e-4, "one and the output")
    assert len(list(early.parameters())) < len(list(several.parameters())), "deeper ones are gone"
    last = load(settings(folders, name, layers=(BLOCKS,)))([CAPTIONS[1]]).features_MF
    assert (last - output.last_hidden_state[0]).abs().max() > 1e-2, "the norm is not in it"


def test_long_captions_are_cut(folders):
    encoder = load(settings(folders, "qwen3", max_tokens=7))
    condition = encoder(["dots " * 10_000, "dots"])
    assert condition.lengths[0] == 7


def test_the_chat_template(folders):
    raw = load(settings(folders, "qwen3"))
    chat = load(settings(folders, "qwen3", prompt="chat"))
    expected = raw.tokenize(["<|user|>dots<|end|><|model|>"])
    assert chat.tokenize(["dots"]) == expected
    with refused(ConfigError, "text_encoder.prompt=chat", folders["t5"][0]):
        load(settings(folders, "t5", prompt="chat"))


@pytest.mark.parametrize("lengths", [[], [5], [300] * 40, [1, 2, 3, 4, 50, 51, 300, 7, 7]])
def test_buckets_hold_each_caption_once_and_little_padding(lengths):
    buckets = list(make_buckets(lengths))
    assert sorted(i for bucket in buckets for i in bucket) == list(range(len(lengths)))
    for bucket in buckets:
        sizes = [lengths[i] for i in bucket]
        assert len(sizes) == 1 or max(sizes) * len(sizes) <= 4096
        assert sum(sizes) >= 0.9 * max(sizes) * len(sizes)


def test_fingerprints_tell_encoders_apart(folders, tmp_path):
    config = settings(folders, "qwen3")
    stored = take_fingerprint(load(config))
    check_fingerprint(stored, take_fingerprint(load(config)), "run")
    half = load(config).to(torch.bfloat16)
    check_fingerprint(stored, take_fingerprint(half), "run")  # what CUDA computes in
    save_text_encoder("qwen3", tmp_path / "other", seed=1)
    others = {
        "other weights": dataclasses.replace(config, path=str(tmp_path / "other")),
        "another layer": dataclasses.replace(config, layers=(2,)),
        "before the norm": dataclasses.replace(config, layers=(BLOCKS,)),
        "a template": dataclasses.replace(config, prompt="chat"),
        "a padding slot": dataclasses.replace(config, padding="right"),
    }
    for what, other in others.items():
        found = take_fingerprint(load(other))
        with pytest.raises(ConfigError) as error:
            check_fingerprint(stored, found, "run/generator.safetensors")
        assert "run/generator.safetensors" in str(error.value), what
    wide = Fingerprint(stored.tokens, 2 * stored.width, stored.values)
    with refused(ConfigError, 2 * stored.width, stored.width):
        check_fingerprint(stored, wide, "run")
    assert max(len(ids) for ids in load(config).tokenize(GOLDEN_PROMPTS)) < 48


def test_what_is_refused(folders, tmp_path):
    with refused(ConfigError, "generator.text_width=99", WIDTH):
        load(settings(folders, "qwen3"), 99)
    with refused(ConfigError, "text_encoder.layers=[9]", BLOCKS):
        load(settings(folders, "qwen3", layers=(9,)))
    with refused(ConfigError, "text_encoder.max_tokens=300", 77):
        load(settings(folders, "clip", max_tokens=300))
    with refused(ConfigError, "text_encoder.padding=right", "t5"):
        load(settings(folders, "t5", padding="right"))
    other = TextEncoderConfig(name="t5", path=str(folders["qwen3"][0]))
    with refused(ConfigError, "'qwen3'", "text_encoder.name=t5"):
        load(other)
    with refused(ConfigError, "text_encoder.path", tmp_path / "missing"):
        load(TextEncoderConfig(path=str(tmp_path / "missing")))
    with refused(UnreachableError, "text_encoder.path=Qwen/Qwen3-1.7B", "HF_HUB_OFFLINE"):
        load(TextEncoderConfig())
    for layers in ((), (1, 1), (-1,)):
        with refused(ConfigError, f"text_encoder.layers={list(layers)}"):
            TextEncoderConfig(layers=layers)


def test_a_folder_that_is_not_whole(folders, tmp_path):
    save_text_encoder("qwen3", tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    from safetensors.torch import load_file, save_file

    state = load_file(weights)
    lost = next(name for name in state if name.endswith("q_proj.weight"))
    del state[lost]
    save_file(state, weights, {"format": "pt"})
    config = TextEncoderConfig(path=str(tmp_path / "model"), max_tokens=48)
    with refused(ConfigError, "text_encoder.path", "lacks 1"):
        load(config)
    weights.write_bytes(b"damaged")
    with refused(ConfigError, "text_encoder.path"):
        load(config)
    (tmp_path / "model" / "tokenizer.json").unlink()
    save_file(state | {lost: torch.zeros(16, 16)}, weights, {"format": "pt"})
    with refused(ConfigError, "text_encoder.path"):
        load(config)


def test_a_tokenizer_of_another_model(folders, tmp_path):
    save_text_encoder("qwen3", tmp_path / "model")
    path = tmp_path / "model" / "tokenizer.json"
    node = json.loads(path.read_text())
    node["added_tokens"] += [
        {
            "id": 400 + i,
            "content": f"<extra{i}>",
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for i in range(100)
    ]
    path.write_text(json.dumps(node))
    with refused(ConfigError, "text_encoder.path", "tokens"):
        load(TextEncoderConfig(path=str(tmp_path / "model")))


class TestWords:
    @pytest.fixture
    def config(self, tmp_path):
        write_vocabulary(tmp_path / "words.json", count_words(CAPTIONS, 6))
        return TextEncoderConfig(name="words", path=str(tmp_path / "words.json"), max_tokens=5)

    def test_words_are_at_right_angles(self, config):
        assert split_words("A red-ish circle, 2!") == ["a", "red", "ish", "circle", "2"]
        encoder = load(config, 8)
        condition = encoder(["a red circle", "", "a zebra", "a " * 99])
        assert condition.lengths == (4, 1, 3, 5)
        words = rows(condition)
        assert_close(words[0] @ words[0].T, 8.0 * torch.eye(4), 1e-6, "products")
        assert torch.equal(words[0][-1], words[1][0]), "the end"
        assert torch.equal(words[2][1], encoder(["kangaroo"]).features_MF[0]), "unknown words"
        assert torch.equal(words[1], condition.null_TF)

    def test_the_most_frequent_words_in_alphabetical_order(self):
        assert count_words(["b a", "b c a", "b"], 2).words == ("a", "b")
        assert count_words([], 2).words == ()

    def test_what_is_refused(self, config, tmp_path):
        with refused(ConfigError, "generator.text_width=16", 8):
            load(config, 16)
        for content in ("", "[]", '{"format": 1, "words": []}', '{"format": 2, "words": ["a"]}'):
            (tmp_path / "bad.json").write_text(content)
            bad = dataclasses.replace(config, path=str(tmp_path / "bad.json"))
            with refused(ConfigError, tmp_path / "bad.json", "gear-dist words"):
                load(bad, 8)
        with refused(ConfigError, tmp_path / "no.json", "gear-dist words"):
            load(dataclasses.replace(config, path=str(tmp_path / "no.json")), 8)

    def test_another_vocabulary_has_another_fingerprint(self, config, tmp_path):
        stored = take_fingerprint(load(config, 8))
        write_vocabulary(tmp_path / "other.json", count_words(GOLDEN_PROMPTS, 6))
        other = dataclasses.replace(config, path=str(tmp_path / "other.json"))
        with refused(ConfigError, "text_encoder"):
            check_fingerprint(stored, take_fingerprint(load(other, 8)), "run")


def test_every_family_of_the_settings_is_there():
    from typing import get_args, get_type_hints

    assert set(get_args(get_type_hints(TextEncoderConfig)["name"])) == set(TEXT_ENCODERS)

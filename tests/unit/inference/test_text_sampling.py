"""Sampling from captions: the cache, guidance by the empty caption, and independence."""

import dataclasses

import pytest
import torch

from gear_dist.config.models import GeneratorConfig, SamplingConfig
from gear_dist.errors import DataError
from gear_dist.inference.decoding.engine import DecodingEngine
from gear_dist.inference.prompt_files import read_prompt_file
from gear_dist.inference.seeds import prompt_seeds
from gear_dist.models.generator import TextCondition, TextGenerator
from refusals import refused

CONFIG = GeneratorConfig(
    condition="text", width=32, num_layers=3, num_heads=2, text_width=6, tap_layer=1
)
LENGTHS = (3, 1, 5, 1)


def make_generator(**changes) -> TextGenerator:
    torch.manual_seed(0)
    config = dataclasses.replace(CONFIG, **changes)
    generator = TextGenerator(config, num_codes=11, grid_size=3, kernels="torch")
    torch.nn.init.normal_(generator.output.weight, std=0.5)
    for block in generator.layers:
        torch.nn.init.normal_(block.attention.wqkv.weight, std=0.3)
    return generator.eval()


def sample(generator, condition, seeds, config):
    return torch.cat([*DecodingEngine(generator).generate(condition, seeds, config)])


def captions(hidden: tuple[bool, ...] = (False,) * 4) -> TextCondition:
    """The second and fourth have one row; hidden, they have nothing to be seen."""
    random = torch.Generator().manual_seed(1)
    features = torch.randn(sum(LENGTHS), 6, generator=random)
    null = torch.randn(2, 6, generator=random)
    return TextCondition(features, LENGTHS, hidden, null, any(hidden))


@pytest.mark.parametrize("hidden", [(False,) * 4, (True, True, False, True)])
@pytest.mark.parametrize("mask", ["causal", "prefix"])
@pytest.mark.parametrize("rotary", ["identity", "zeros"])
@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_the_cache_changes_nothing(hidden, mask, rotary, guidance):
    """Greedy decoding equals the argmax of whole forward passes, token by token."""
    generator = make_generator(text_mask=mask, text_rotary=rotary)
    condition = captions(hidden)
    found = sample(generator, condition, range(4), SamplingConfig(guidance, temperature=0))
    null = condition.dropped([True] * 4, CONFIG)
    for length in range(9):
        logits = generator.logits(found[:, :length], condition)[:, -1]
        if guidance != 1:
            unconditional = generator.logits(found[:, :length], null)[:, -1]
            logits = unconditional + guidance * (logits - unconditional)
        assert torch.equal(logits.argmax(-1), found[:, length])
    assert len(set(map(tuple, found.tolist()))) > 1


def test_an_image_depends_on_its_own_caption_and_seed_alone():
    generator = make_generator()
    condition = captions()
    config = SamplingConfig(guidance=1.5)
    whole = sample(generator, condition, [5, 6, 7, 8], config)
    for image, part in enumerate(condition.split(1)):
        assert torch.equal(sample(generator, part, [5 + image], config)[0], whole[image])
    other = sample(generator, condition, [9, 6, 7, 8], config)
    assert not torch.equal(other[0], whole[0])
    assert torch.equal(other[1:], whole[1:])


def test_prompts_have_seeds_of_their_own():
    seeds = prompt_seeds(7, ["a", "b", "a", ""])
    assert len(set(seeds)) == 4
    assert seeds[3] == 7, "an empty prompt has the seed itself"
    assert prompt_seeds(7, ["c", "b", "a", "a"])[1:] == [seeds[1], seeds[0], seeds[2]]
    assert prompt_seeds(8, ["a"]) != seeds[:1]


class TestPromptFiles:
    def test_a_prompt_a_line(self, tmp_path, capsys):
        path = tmp_path / "prompts.txt"
        path.write_bytes("\ufeffa red dot\n\n  \nune café  \r\n".encode())
        assert read_prompt_file(path, most=5) == ["a red dot", "une café"]
        assert "2 blank lines" in capsys.readouterr().err

    def test_what_is_refused(self, tmp_path):
        path = tmp_path / "prompts.txt"
        for content in (b"", b"\n\n", b"a\n" * 6):
            path.write_bytes(content)
            with refused(DataError, f"--prompts {path}", 5):
                read_prompt_file(path, most=5)
        path.write_bytes(b"\xff\xfe\n")
        with refused(DataError, f"--prompts {path}", "UTF-8"):
            read_prompt_file(path, most=5)
        with refused(DataError, f"--prompts {tmp_path / 'no'}"):
            read_prompt_file(tmp_path / "no", most=5)
        with refused(DataError, f"--prompts {tmp_path}"):
            read_prompt_file(tmp_path, most=5)

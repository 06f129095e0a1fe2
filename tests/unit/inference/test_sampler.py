"""Sampling: filters, guidance, the cache, determinism."""

import pytest
import torch

from gear_dist.config.models import GeneratorConfig, SamplingConfig
from gear_dist.errors import ConfigError
from gear_dist.inference.sampler import draw, filter_logits, sample
from gear_dist.models.generator import ClassCondition
from gear_dist.models.generator.transformer import Generator
from refusals import refused

LOGITS = torch.tensor([[0.5, 0.1, 0.3, 0.1]]).log()


def kept(logits):
    return torch.isfinite(logits[0]).nonzero()[:, 0].tolist()


@pytest.mark.parametrize(
    ("top_k", "codes"), [(0, [0, 1, 2, 3]), (1, [0]), (2, [0, 2]), (9, [0, 1, 2, 3])]
)
def test_top_k(top_k, codes):
    assert kept(filter_logits(LOGITS, top_k, 1.0)) == codes


@pytest.mark.parametrize(
    ("top_p", "codes"), [(0.01, [0]), (0.45, [0]), (0.6, [0, 2]), (1.0, [0, 1, 2, 3])]
)
def test_top_p_is_the_smallest_set_that_reaches_p(top_p, codes):
    assert kept(filter_logits(LOGITS, 0, top_p)) == codes


def test_draws_follow_the_tempered_distribution():
    random = torch.Generator().manual_seed(0)
    config = SamplingConfig(temperature=0.5)
    codes = draw(LOGITS.expand(20000, -1), config, random)
    wanted = (LOGITS[0] / 0.5).softmax(-1)
    assert torch.allclose(codes.bincount(minlength=4) / 20000, wanted, atol=0.015)


@pytest.fixture
def generator():
    torch.manual_seed(0)
    config = GeneratorConfig(
        width=32, num_layers=2, num_heads=2, num_classes=3, tap_layer=1, class_dropout=0.1
    )
    generator = Generator(config, num_codes=11, grid_size=3, kernels="torch")
    torch.nn.init.normal_(generator.output.weight)
    return generator.train()


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_the_cache_changes_nothing(generator, guidance):
    """Greedy decoding equals the argmax of whole forward passes, token by token."""
    classes = ClassCondition(torch.tensor([0, 2]))
    found = sample(generator, classes, SamplingConfig(guidance=guidance), None)
    assert generator.training, "the mode is as it was"
    generator.eval()
    null = ClassCondition(torch.full((2,), 3))
    tokens = torch.zeros(2, 0, dtype=torch.long)
    for _ in range(9):
        logits = generator.logits(tokens, classes)[:, -1]
        unconditional = generator.logits(tokens, null)[:, -1]
        guided = unconditional + guidance * (logits - unconditional)
        tokens = torch.cat([tokens, guided.argmax(-1)[:, None]], dim=1)
    assert torch.equal(found, tokens)


def test_samples_are_a_function_of_the_seed(generator):
    classes = ClassCondition(torch.tensor([0, 1, 2]))
    config = SamplingConfig(guidance=1.5, top_k=5)
    first, again, other = (
        sample(generator, classes, config, torch.Generator().manual_seed(seed))
        for seed in (7, 7, 8)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == (3, 9)


def test_guidance_without_a_null_class_is_refused():
    config = GeneratorConfig(
        width=32, num_layers=1, num_heads=2, num_classes=3, tap_layer=1, class_dropout=0.0
    )
    generator = Generator(config, num_codes=11, grid_size=3, kernels="torch")
    with refused(ConfigError, "sampling.guidance=2.0", "generator.class_dropout=0"):
        sample(generator, ClassCondition(torch.tensor([0])), SamplingConfig(guidance=2.0), None)

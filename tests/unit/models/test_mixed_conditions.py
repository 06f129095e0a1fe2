"""Conditions between two others: exact at both ends, on the line between, and whole in batches."""

import pytest
import torch

from gear_dist.config.models import GeneratorConfig
from gear_dist.errors import ConfigError
from gear_dist.models.generator import ClassCondition, TextCondition
from gear_dist.models.generator.conditioning import ClassEmbedding
from refusals import refused

CONFIG = GeneratorConfig(num_classes=5, width=8, num_layers=1, num_heads=1, tap_layer=1)
SHARES = (0.0, 0.25, 0.5, 1.0)


@pytest.fixture
def embedding() -> ClassEmbedding:
    torch.manual_seed(0)
    return ClassEmbedding(CONFIG)


def classes(first: int, second: int):
    one, two = (ClassCondition(torch.tensor([label] * len(SHARES))) for label in (first, second))
    return one.mixed(two, SHARES)


def test_classes(embedding: ClassEmbedding) -> None:
    table = embedding.embedding_table.weight
    found = embedding(classes(1, 4))[:, 0]
    assert torch.equal(found[0], table[1])
    assert torch.equal(found[3], table[4])
    assert torch.allclose(found[1], 0.75 * table[1] + 0.25 * table[4])
    assert torch.equal(embedding(classes(2, 2))[2, 0], table[2])


def test_classes_in_parts_and_with_their_null_half(embedding: ClassEmbedding) -> None:
    condition = classes(1, 4)
    whole = embedding(condition)
    parts = list(condition.split(3))
    assert [part.num_images for part in parts] == [3, 1]
    assert torch.equal(torch.cat([embedding(part) for part in parts]), whole)
    padded = condition.padded(6)
    assert torch.equal(embedding(padded), torch.cat([whole, whole[-1:].expand(2, -1, -1)]))
    null = embedding.embedding_table.weight[5]
    doubled = embedding(condition.with_null(CONFIG).to(torch.device("cpu")))[:, 0]
    assert torch.equal(doubled[:4], whole[:, 0])
    assert torch.equal(doubled[4:], null.expand(4, -1))
    dropped = embedding(condition.dropped([False, True, False, False], CONFIG))[:, 0]
    assert torch.equal(dropped[1], null)
    assert torch.equal(dropped[2], whole[2, 0])


def test_classes_that_are_not_there() -> None:
    for labels in ((1, 5), (-1, 2)):
        with refused(ConfigError, "out of range", "generator.num_classes"):
            classes(*labels).check(CONFIG)


def captions(lengths: tuple[int, ...], hidden: tuple[bool, ...], seed: int) -> TextCondition:
    random = torch.Generator().manual_seed(seed)
    features = torch.randn(sum(lengths), 6, generator=random)
    return TextCondition(features, lengths, hidden, torch.zeros(1, 6), False)


def mixed(lengths: tuple[int, int], hidden: tuple[bool, bool]) -> tuple[TextCondition, ...]:
    """Two captions, and what is between them at each share."""
    one, two = (captions((n,), (h,), n) for n, h in zip(lengths, hidden, strict=True))
    many = [
        condition._replace(
            features_MF=condition.features_MF.repeat(len(SHARES), 1),
            lengths=condition.lengths * len(SHARES),
            hidden=condition.hidden * len(SHARES),
        )
        for condition in (one, two)
    ]
    return one, two, many[0].mixed(many[1], SHARES)


@pytest.mark.parametrize("hidden", [(False, False), (True, True), (True, False), (False, True)])
@pytest.mark.parametrize("lengths", [(3, 5), (5, 3), (4, 4), (1, 4), (1, 1)])
def test_captions(lengths: tuple[int, int], hidden: tuple[bool, bool]) -> None:
    one, two, found = mixed(lengths, hidden)
    rows = found.features_MF.split(found.lengths)
    assert torch.equal(rows[0], one.features_MF)
    assert torch.equal(rows[3], two.features_MF)
    assert (found.hidden[0], found.hidden[3]) == hidden
    between = 0.5 * one.features_MF[-1] + 0.5 * two.features_MF[-1]
    assert torch.allclose(rows[2][-1], between), "the last row predicts the first image token"
    assert found.hidden[2] == any(hidden)
    words = [n - (h and n > 1) for n, h in zip(lengths, hidden, strict=True)]
    assert found.lengths[1] == max(words) + any(hidden)


def test_the_shorter_caption_is_stretched() -> None:
    one, two, found = mixed((3, 5), (False, False))
    rows = found.features_MF.split(found.lengths)[1]
    a = one.features_MF
    stretched = torch.stack([a[0], (a[0] + a[1]) / 2, a[1], (a[1] + a[2]) / 2, a[2]])
    assert torch.allclose(rows, 0.75 * stretched + 0.25 * two.features_MF, atol=1e-6)

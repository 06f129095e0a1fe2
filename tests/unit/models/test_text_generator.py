"""The text-to-image generator against the public code's numbers and against a plain formula."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import public_text_step
from dense_text_generator import dense_hidden, packed_condition
from gear_dist.config.models import GeneratorConfig
from gear_dist.config.training import AlignmentConfig
from gear_dist.models.generator import TextCondition, TextGenerator, build_aligned_generator
from largest_tensor import LargestTensor
from public_layouts import GENERATORS, read_layout
from reference_numbers import assert_close, part, read_reference

MASKS = ["causal", "prefix"]
TINY = GeneratorConfig(
    condition="text",
    width=32,
    num_layers=6,
    num_heads=2,
    text_width=12,
    residual_dropout=0.0,
    feed_forward_dropout=0.0,
    token_dropout=0.0,
    tap_layer=3,
)
GRID = 3
CODES = 20


def make_generator(config: GeneratorConfig, grid_size: int = GRID, codes: int = CODES):
    torch.manual_seed(0)
    generator = TextGenerator(config, num_codes=codes, grid_size=grid_size, kernels="auto").eval()
    torch.nn.init.normal_(generator.output.weight, std=0.5)
    return generator


def rows_of(generator: TextGenerator, indices: Tensor, condition: TextCondition):
    """The residual stream at the tap and after the final norm, and where its rows are."""
    x, where = generator.embed(indices, condition)
    tap = x
    for number, block in enumerate(generator.layers):
        x = block(x, where)
        tap = x if number + 1 == generator.config.tap_layer else tap
    return tap, generator.norm(x), where


@pytest.fixture(params=MASKS)
def published(request):
    config, numbers = read_reference(f"generator_t2i_{request.param}")
    settings = GeneratorConfig(
        condition="text",
        width=config["dim"],
        num_layers=config["n_layer"],
        num_heads=config["n_head"],
        text_width=config["caption_dim"],
        text_mask=config["text_attn"],
        text_rotary="zeros",
        tap_layer=config["tap_layer"],
    )
    assert settings.num_double_layers == config["n_double_stream"]
    side = round(config["block_size"] ** 0.5)
    generator = make_generator(settings, side, config["vocab_size"])
    generator.load_state_dict(part(numbers, "state."))
    return numbers, generator


@pytest.mark.parametrize("images", [[0, 1], [1, 0], [0], [1], [1, 0, 1, 0]], ids=str)
def test_logits_and_tap_are_the_public_codes(published, images):
    """With padding (image 0) and without (1), alone and packed in any order."""
    numbers, generator = published
    text, mask = numbers["text"][images], numbers["text_mask"][images].bool()
    indices = numbers["indices"][images]
    condition = packed_condition(text, mask)
    slots = text.shape[1]
    with torch.no_grad():
        tap, hidden, where = rows_of(generator, indices[:, :-1], condition)
        out = generator(indices[:, :-1], condition, indices)
        logits = generator.output.logits(hidden)
    for place, image in enumerate(images):
        kept = [*torch.nonzero(mask[place])[:, 0].tolist(), *([] if mask[place, -1] else [-1])]
        for ours, name in ((tap, "hidden_tap"), (logits, "logits")):
            theirs = numbers[name][image]
            assert_close(where.caption(ours, place), theirs[:slots][kept], 1e-5, name)
            assert_close(where.predicting(ours)[place], theirs[slots - 1 :], 1e-5, name)
    assert_close(out.tap_BLD, numbers["hidden_tap"][images][:, slots - 1 :], 1e-5, "tap")
    expected = numbers["logits"][images][:, slots - 1 :].double().log_softmax(-1)
    expected = -expected.gather(-1, indices[..., None]).mean()
    assert_close(out.cross_entropy, expected, 1e-5, "cross-entropy")
    assert_close(
        generator.logits(indices[:, :-1], condition),
        numbers["logits"][images][:, slots - 1 :],
        1e-5,
        "logits of image positions",
    )


def random_captions(slots: int, lengths: list[int]) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    text = torch.randn(len(lengths), slots, TINY.text_width, generator=random, dtype=torch.double)
    return text, torch.arange(slots) < torch.tensor(lengths)[:, None]


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("rotary", ["identity", "zeros"])
def test_gradients_are_those_of_a_dense_mask(mask, rotary):
    """In float64: captions of several lengths, whole, equal, and empty."""
    config = dataclasses.replace(TINY, text_mask=mask, text_rotary=rotary)
    generator = make_generator(config).double()
    text, text_mask = random_captions(5, [3, 5, 0, 3, 1])
    indices = torch.randint(CODES, (5, GRID**2), generator=torch.Generator().manual_seed(2))
    weights = {name: value.detach().clone() for name, value in generator.named_parameters()}
    for value in weights.values():
        value.requires_grad_(True)
    tap, hidden = dense_hidden(weights, config, text, text_mask, indices[:, :-1], grid_size=GRID)
    probe = torch.randn(tap[:, 4:].shape, generator=torch.Generator().manual_seed(3)).double()
    logits = F.linear(hidden[:, 4:], weights["output.weight"])
    loss = F.cross_entropy(logits.flatten(0, 1), indices.flatten())
    (loss + (tap[:, 4:] * probe).mean()).backward()
    our_tap, our_hidden, where = rows_of(
        generator, indices[:, :-1], packed_condition(text, text_mask)
    )
    our_logits = F.linear(where.predicting(our_hidden), generator.output.weight)
    our_loss = F.cross_entropy(our_logits.flatten(0, 1), indices.flatten())
    (our_loss + (where.predicting(our_tap) * probe).mean()).backward()
    assert_close(our_loss, loss, 1e-10, "loss")
    largest = max(value.grad.abs().max().item() for value in weights.values())
    for name, parameter in generator.named_parameters():
        # The rotary table is fp32 in both.
        assert_close(parameter.grad, weights[name].grad, 1e-6, name, floor=1e-9 * largest)
    text_qk = generator.layers[0].attention.wqkv_text.weight.grad[: 2 * config.width]
    assert (text_qk.abs().max() == 0) == (rotary == "zeros"), "dead with zeros alone"


def test_recomputed_blocks_give_the_same_gradients():
    gradients = []
    for recomputes in (False, True):
        config = dataclasses.replace(TINY, activation_checkpointing=recomputes)
        generator = make_generator(config).train()
        text, mask = random_captions(4, [2, 4])
        indices = torch.arange(2 * GRID**2).view(2, -1) % CODES
        condition = packed_condition(text.float(), mask)
        out = generator(indices[:, :-1], condition, indices)
        (out.cross_entropy + out.tap_BLD.mean()).backward()
        gradients.append([p.grad for p in generator.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_an_image_does_not_depend_on_the_others_captions():
    generator = make_generator(TINY)
    text, mask = random_captions(5, [2, 5, 4])
    indices = torch.arange(3 * GRID**2).view(3, -1) % CODES
    whole = generator.logits(indices[:, :-1], packed_condition(text.float(), mask))
    for image in range(3):
        one = slice(image, image + 1)
        alone = generator.logits(indices[one, :-1], packed_condition(text[one].float(), mask[one]))
        assert_close(whole[one], alone, 1e-5, f"image {image}")


def test_the_null_condition_takes_the_place_of_dropped_captions():
    text, mask = random_captions(4, [2, 4, 3])
    null_TF = torch.full((2, TINY.text_width), 7.0)
    condition = packed_condition(text.float(), mask)._replace(null_TF=null_TF, null_hidden=False)
    dropped = condition.dropped([False, True, False], TINY)
    assert dropped.lengths == (3, 2, 4)
    assert dropped.hidden == (True, False, True)
    parts = dropped.features_MF.split(dropped.lengths)
    own = condition.features_MF.split(condition.lengths)
    assert torch.equal(parts[0], own[0])
    assert torch.equal(parts[1], null_TF)
    assert torch.equal(parts[2], own[2])
    both = condition.with_null(TINY)
    assert both.num_images == 6
    assert both.lengths == (3, 4, 4, 2, 2, 2)
    assert both.hidden == (True, False, True, False, False, False)
    halves = list(both.split(4))
    assert [half.num_images for half in halves] == [4, 2]
    assert torch.equal(torch.cat([half.features_MF for half in halves]), both.features_MF)


def test_nothing_of_all_slots_is_ever_made():
    """Memory: no tensor of scores, and of the padding not a row."""
    config = dataclasses.replace(TINY, num_layers=3, tap_layer=1)
    generator = make_generator(config, grid_size=16)
    slots, lengths = 300, [12, 7, 30, 12]
    text, mask = random_captions(slots, lengths)
    indices = torch.zeros(4, 256, dtype=torch.int64)
    condition = packed_condition(text.float(), mask)
    rows = sum(condition.lengths) + 4 * 255
    hidden = generator.layers[0].feed_forward.w1.out_features
    with LargestTensor() as watch:
        out = generator(indices[:, :-1], condition, indices)
        (out.cross_entropy + out.tap_BLD.mean()).backward()
    assert watch.elements <= rows * hidden, watch.operation


def test_every_key_and_shape_of_the_published_model():
    parameters, shapes = read_layout("t2i/LlamaGen-1B")
    config = GENERATORS["t2i/LlamaGen-1B"]
    with torch.device("meta"):
        generator = TextGenerator(config, num_codes=16384, grid_size=16, kernels="auto")
    assert {key: tuple(v.shape) for key, v in generator.state_dict().items()} == shapes
    assert sum(p.numel() for p in generator.parameters()) == parameters


def test_projectors_read_the_tap():
    aligned = build_aligned_generator(make_generator(TINY), AlignmentConfig(), [5])
    text, mask = random_captions(4, [2, 4])
    indices = torch.arange(2 * GRID**2).view(2, -1) % CODES
    out = aligned(indices[:, :-1], packed_condition(text.float(), mask))
    assert out.projected[0].shape == (2, GRID**2, 5)
    assert out.cross_entropy is None


@pytest.mark.parametrize("side", [1, 2])
def test_few_tokens_and_no_caption(side):
    generator = make_generator(TINY, grid_size=side)
    text, mask = random_captions(4, [0, 0])
    indices = torch.zeros(2, side**2, dtype=torch.int64)
    out = generator(indices[:, :-1], packed_condition(text.float(), mask), indices)
    assert out.tap_BLD.shape == (2, side**2, TINY.width)
    assert torch.isfinite(out.cross_entropy)


def test_the_benchmarks_other_side_computes_the_same():
    """All 300 slots and the head at all positions, as the public layout: the same loss."""
    config = dataclasses.replace(TINY, num_layers=2, tap_layer=1)
    generator = make_generator(config, public_text_step.GRID, public_text_step.CODES)
    text, mask, indices = public_text_step.make_batch(2, config.text_width)
    condition = packed_condition(text, mask)
    with torch.no_grad():
        padded = public_text_step.PaddedStep(generator).loss(text, mask, indices)
        packed = generator(indices[:, :-1], condition, indices).cross_entropy
    assert_close(packed, padded, 1e-5, "loss")

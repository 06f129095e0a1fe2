"""What the generator's losses send to the tokenizer, against formulas with (N, K) matrices."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gear_dist.config.models import GeneratorConfig, TokenizerConfig
from gear_dist.models.generator import ClassCondition, Generator, SoftTokens, StraightThroughTokens
from gear_dist.models.tokenizers import build_tokenizer
from gear_dist.training.steps import soft_tokens
from gear_kernels.reference import affinities, lfq_affinities

CODES, TAU, GRID, BATCH = 16, 0.7, 3, 2
WIDTHS = {"vq": 4, "lfq": 4, "ibq": 6}


@pytest.fixture(params=WIDTHS)
def quantizer(request: pytest.FixtureRequest):
    torch.manual_seed(1)
    config = TokenizerConfig(
        quantizer=request.param,
        codebook_size=CODES,
        code_width=WIDTHS[request.param],
        channels=8,
        channel_multipliers=(1, 1),
        norm_groups=2,
        num_res_blocks=1,
        latent_channels=8,
    )
    tokenizer = build_tokenizer(config, soft_temperature=TAU, kernels="torch")
    for parameter in tokenizer.quantize.parameters():
        torch.nn.init.normal_(parameter)
    return tokenizer.quantize


@pytest.fixture
def generator() -> Generator:
    torch.manual_seed(2)
    settings = {"width": 16, "num_layers": 2, "num_heads": 2, "num_classes": 3, "tap_layer": 1}
    built = Generator(GeneratorConfig(**settings), num_codes=CODES, grid_size=GRID, kernels="torch")
    torch.nn.init.normal_(built.output.weight)
    torch.nn.init.normal_(built.tok_embeddings.weight)
    return built.eval().requires_grad_(False)


@pytest.fixture
def latents(quantizer) -> Tensor:
    width = quantizer.settings.width
    return torch.randn(BATCH, width, GRID, GRID, generator=torch.Generator().manual_seed(3))


def one_hot(quantized, *, soft_only: bool) -> Tensor:
    """(B, L, K): softmax(s / tau), or the straight-through one-hot."""
    codes, latents_NC = quantized.codes, quantized.latents_NC
    if hasattr(codes, "num_bits"):
        s_NK = lfq_affinities(latents_NC)
    else:
        s_NK = affinities(latents_NC, codes.codebook_KC, codes.affinity)
    soft_NK = torch.softmax(s_NK / TAU, 1)
    if not soft_only:
        hard_NK = F.one_hot(quantized.indices_N, CODES).float()
        soft_NK = hard_NK + soft_NK - soft_NK.detach()
    return soft_NK.view(BATCH, GRID**2, CODES)


class _Matrix:
    """Tokens given by their (B, L, K) matrix."""

    def __init__(self, matrix_BLK: Tensor):
        self.matrix_BLK = matrix_BLK

    def read(self, table_KD: Tensor, kernels: str) -> Tensor:
        return self.matrix_BLK @ table_KD


def gradients(loss: Tensor, latents: Tensor, quantizer) -> list[Tensor]:
    wanted = [latents, *quantizer.parameters()]
    return list(torch.autograd.grad(loss, wanted))


def close(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert b.abs().max() > 1e-6
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))


def test_straight_through_equals_the_one_hot_matrix(quantizer, generator, latents) -> None:
    """Cross-entropy -t @ log p and the tap, both with t's gradient; values are the hard ones."""
    latents.requires_grad_()
    classes = ClassCondition(torch.tensor([0, 2]))
    probe = torch.randn(BATCH, GRID**2, 16, generator=torch.Generator().manual_seed(4))
    quantized = quantizer(latents)
    indices_BL = quantized.indices_N.view(BATCH, -1)
    tokens = StraightThroughTokens(indices_BL, soft_tokens(quantized, BATCH, TAU))
    out = generator(tokens.without_last(), classes, tokens)
    ours = gradients(out.cross_entropy + (out.tap_BLD * probe).mean(), latents, quantizer)

    quantized = quantizer(latents)
    t_BLK = one_hot(quantized, soft_only=False)
    hidden = {}
    with torch.no_grad():
        hard = generator(indices_BL[:, :-1], classes, indices_BL)
    generator.norm.register_forward_hook(lambda _, __, result: hidden.update(last=result))
    plain = generator(_Matrix(t_BLK[:, :-1]), classes, indices_BL)
    log_p_BLK = torch.log_softmax(hidden["last"] @ generator.output.weight.T, -1)
    cross_entropy = -(t_BLK * log_p_BLK).sum(-1).mean()
    theirs = gradients(cross_entropy + (plain.tap_BLD * probe).mean(), latents, quantizer)

    torch.testing.assert_close(out.cross_entropy, hard.cross_entropy)
    torch.testing.assert_close(out.tap_BLD, hard.tap_BLD)
    close(ours, theirs)


def test_the_soft_estimator_equals_the_soft_matrix(quantizer, generator, latents) -> None:
    latents.requires_grad_()
    classes = ClassCondition(torch.tensor([0, 2]))
    probe = torch.randn(BATCH, GRID**2, 16, generator=torch.Generator().manual_seed(4))
    quantized = quantizer(latents)
    soft: SoftTokens = soft_tokens(quantized, BATCH, TAU)
    out = generator(soft.without_last(), classes)
    ours = gradients((out.tap_BLD * probe).mean(), latents, quantizer)
    quantized = quantizer(latents)
    plain = generator(_Matrix(one_hot(quantized, soft_only=True)[:, :-1]), classes)
    close(ours, gradients((plain.tap_BLD * probe).mean(), latents, quantizer))

"""What every quantizer family owes the trainer, beside the public code's numbers."""

import pytest
import torch

from gear_dist.config.models import TokenizerConfig
from gear_dist.losses.entropy import entropy_loss
from gear_dist.models.generator import SoftTokens
from gear_dist.models.generator.transformer import TokenEmbedding
from gear_dist.models.tokenizers import build_tokenizer
from largest_tensor import LargestTensor

CODES = 16384
SMALL = {"channels": 8, "channel_multipliers": (1, 1), "num_res_blocks": 1, "norm_groups": 2}
FAMILIES = {
    "vq": {"code_width": 8, "latent_channels": 8},
    "lfq": {"code_width": 14},
    "ibq": {"code_width": 32, "latent_channels": 8},
}


def build(family: str, **changes):
    torch.manual_seed(0)
    settings = SMALL | FAMILIES[family] | {"codebook_size": CODES} | changes
    return build_tokenizer(TokenizerConfig(quantizer=family, **settings))


@pytest.fixture(params=FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_forward_backward_and_read_out_form_no_matrix_of_tokens_and_codes(family, images):
    """N = 2048 tokens, K = 16384 codes: nothing of a tenth of N K elements."""
    tokenizer = build(family)
    embedding = TokenEmbedding(CODES, 24, "auto").requires_grad_(False)
    torch.nn.init.normal_(embedding.weight)
    with LargestTensor() as largest:
        out = tokenizer(images)
        q = out.quantized
        width = q.latents_NC.shape[1]
        soft = embedding(
            SoftTokens(
                q.latents_NC.view(2, -1, width), q.codes, q.soft_log_sum_exp_N.view(2, -1), 0.1
            )
        )
        entropy = entropy_loss(q.token_entropy, q.mean_probabilities_K, 0.05)
        (out.reconstruction.mean() + soft.mean() + q.vq_loss + q.commit_loss + entropy).backward()
    assert q.indices_N.shape == (2048,)
    assert largest.elements < 2048 * CODES / 10


def test_soft_alignment_reaches_encoder_and_learned_codes(family, images):
    tokenizer = build(family)
    q = tokenizer(images).quantized
    table = torch.randn(CODES, 4)
    q.codes.soft_readout(
        q.latents_NC, table, q.soft_log_sum_exp_N, temperature=0.1, implementation="auto"
    ).square().sum().backward()
    assert tokenizer.encoder.conv_in.weight.grad.abs().max() > 0
    for key, parameter in tokenizer.quantize.named_parameters():
        assert parameter.grad.abs().max() > 0, key


def test_the_codes_are_no_parameter(family, images):
    """ZeRO-3 releases a parameter's memory once its module has run."""
    codes = build(family)(images).quantized.codes
    tensors = [value for value in codes if isinstance(value, torch.Tensor)]
    assert bool(tensors) == (family != "lfq")  # whose codes are signs, without a table
    assert not any(isinstance(tensor, torch.nn.Parameter) for tensor in tensors)


def test_an_index_decodes_to_what_was_decoded(family, images):
    tokenizer = build(family).eval()
    out = tokenizer(images)
    indices = tokenizer.encode(images)
    codes = tokenizer.quantize.lookup(indices.view(2, 32, 32))
    assert torch.allclose(codes, out.quantized.quantized_BChw, atol=1e-6)
    assert torch.allclose(tokenizer.decode(indices), out.reconstruction, atol=1e-5)


def test_quantizing_is_fp32_under_autocast(family, images):
    """The same latents give the same indices, losses and codes as without."""
    tokenizer = build(family)
    with torch.no_grad():
        z = tokenizer.quant_conv(tokenizer.encoder(images))
        wanted = tokenizer.quantize(z)
        with torch.autocast("cpu", torch.bfloat16):
            found = tokenizer.quantize(z)
    assert torch.equal(found.indices_N, wanted.indices_N)
    for ours, theirs in zip(found, wanted, strict=True):
        if isinstance(ours, torch.Tensor) and ours.is_floating_point():
            assert ours.dtype == torch.float32
            assert torch.equal(ours, theirs)


def read_table(
    quantized, *, dtype: torch.dtype = torch.float32, autocast: bool = False, cast: bool = False
) -> list[torch.Tensor]:
    """Soft read-out of a table, under autocast or of a cast one; gradients of latents and table."""
    generator = torch.Generator().manual_seed(2)
    embedding = TokenEmbedding(CODES, 24, "torch")
    torch.nn.init.normal_(embedding.weight, generator=generator)
    embedding.to(dtype)
    probe = torch.randn(2, 64, 24, generator=generator)
    latents = quantized.latents_NC.detach().to(dtype).view(2, 64, -1).requires_grad_()
    tokens = SoftTokens(latents, quantized.codes, quantized.soft_log_sum_exp_N.view(2, -1), 0.1)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = tokens.read(embedding.weight.bfloat16(), "torch") if cast else embedding(tokens)
    return [out, *torch.autograd.grad((out * probe).sum(), [latents, embedding.weight])]


def test_the_soft_read_out_multiplies_in_autocasts_dtype(family, images):
    """The table alone is rounded, to the last bit as by a cast; gradients come back in fp32."""
    quantized = build(family)(images[:, :, :16, :16]).quantized
    found = read_table(quantized, autocast=True)
    assert [value.dtype for value in found] == [torch.bfloat16, torch.float32, torch.float32]
    for value, wanted in zip(found, read_table(quantized, cast=True), strict=True):
        assert value.abs().max() > 0
        assert torch.equal(value, wanted)


def test_the_soft_read_out_keeps_fp32_without_autocast_and_fp64_under_it(family, images):
    quantized = build(family)(images[:, :, :16, :16]).quantized
    plain, double = read_table(quantized), read_table(quantized, dtype=torch.float64, autocast=True)
    assert {value.dtype for value in plain} == {torch.float32}
    assert {value.dtype for value in double} == {torch.float64}


def test_lookup_free_bits_zero_is_minus_one():
    quantize = build("lfq", code_width=3, codebook_size=8).quantize
    z = torch.tensor([0.0, 2.0, -1.0]).view(1, 3, 1, 1)
    found = quantize(z)
    assert found.indices_N.tolist() == [2]
    assert found.quantized_BChw.flatten().tolist() == [-1.0, 1.0, -1.0]
    assert quantize.lookup(torch.tensor([[[5]]])).flatten().tolist() == [1.0, -1.0, 1.0]


def test_attention_stands_where_the_setting_says():
    keys = build("ibq", attention_levels=(0,)).state_dict()
    assert "encoder.down.0.attn.0.q.weight" in keys
    assert "encoder.down.1.attn.0.q.weight" not in keys
    assert "decoder.up.0.attn.1.q.weight" in keys


def test_diagnostics_say_how_sure_and_how_even_the_codes_are(family, images):
    small = {"codebook_size": 16, "code_width": 4} if family == "lfq" else {"codebook_size": 16}
    found = build(family, **small)(images).quantized.diagnostics
    assert 1 <= found.effective_codes <= 16
    assert 1 / 16 <= found.top1_probability <= found.top1_probability_soft <= 1
    assert not any(value.requires_grad for value in found)

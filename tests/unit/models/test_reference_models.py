"""Tokenizer, generator and discriminator against the numbers of the method's public code."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from gear_dist.config.models import (
    DiscriminatorConfig,
    GeneratorConfig,
    SamplingConfig,
    TokenizerConfig,
)
from gear_dist.inference.decoding.engine import DecodingEngine
from gear_dist.losses.adversarial import adversarial_loss, hinge_loss
from gear_dist.losses.entropy import entropy_loss
from gear_dist.losses.reconstruction import l1_loss
from gear_dist.models.discriminator.patchgan import PatchDiscriminator
from gear_dist.models.generator import ClassCondition
from gear_dist.models.generator.transformer import Generator, SoftTokens
from gear_dist.models.tokenizers import LearnedCodes, build_tokenizer
from gear_kernels import Affinity
from reference_numbers import assert_close, part, read_reference


def tokenizer_config(config: dict) -> TokenizerConfig:
    levels = (
        [config["resolution"] >> i for i in range(len(config["ch_mult"]))]
        if ("resolution" in config)
        else []
    )
    attention = tuple(levels.index(side) for side in config.get("attn_resolutions", ()))
    return TokenizerConfig(
        quantizer=config["family"],
        attention_levels=attention or (-1,),
        codebook_size=config["codebook_size"],
        code_width=config["codebook_dim"],
        channels=config["ch"],
        channel_multipliers=tuple(config["ch_mult"]),
        num_res_blocks=config["num_res_blocks"],
        latent_channels=config["z_channels"],
        commit_weight=config["commit_beta"],
        entropy_weight=config["entropy_ratio"],
        entropy_temperature=config["entropy_temperature"],
    )


def generator_from(config: dict, kernels: str = "auto") -> Generator:
    return Generator(
        GeneratorConfig(
            width=config["dim"],
            num_layers=config["n_layer"],
            num_heads=config["n_head"],
            num_classes=config["num_classes"],
            residual_dropout=config["resid_dropout_p"],
            feed_forward_dropout=config["ffn_dropout_p"],
            token_dropout=config["token_dropout_p"],
            class_dropout=config["class_dropout_prob"],
            tap_layer=config.get("tap_layer", 2),
        ),
        num_codes=config["vocab_size"],
        grid_size=round(config["block_size"] ** 0.5),
        kernels=kernels,
    )


FAMILIES = ["vq", "lfq", "ibq"]
KERNELS = ["torch", "reference"]


class TestTokenizer:
    @pytest.fixture(params=itertools.product(FAMILIES, KERNELS), ids="-".join)
    def case(self, request):
        family, kernels = request.param
        config, numbers = read_reference(f"tokenizer_{family}")
        tokenizer = build_tokenizer(tokenizer_config(config), kernels=kernels)
        tokenizer.load_state_dict(part(numbers, "state."))
        return config, numbers, tokenizer.train(), kernels

    def test_outputs_and_gradients(self, case):
        config, numbers, tokenizer, kernels = case
        out = tokenizer(numbers["x"])
        q = out.quantized
        assert torch.equal(q.indices_N.view(2, -1), numbers["indices"])
        assert_close(out.reconstruction, numbers["recon"], 1e-5, "recon")
        assert_close(q.quantized_BChw, numbers["quantized"], 1e-5, "quantized")
        assert_close(q.vq_loss, numbers["vq_loss"], 1e-5, "vq_loss")
        assert_close(q.commit_loss, numbers["commit_loss"], 1e-5, "commit_loss")
        assert_close(q.token_entropy, numbers["sample_entropy"], 1e-4, "sample_entropy")
        entropy = entropy_loss(q.token_entropy, q.mean_probabilities_K, config["entropy_ratio"])
        assert_close(entropy, numbers["entropy_loss"], 1e-4, "entropy_loss")
        average = q.token_entropy - entropy / config["entropy_ratio"]
        assert_close(average, numbers["average_entropy"], 1e-4, "average_entropy")
        soft = q.codes.soft_readout(
            q.latents_NC,
            numbers["embedding_table"],
            q.soft_log_sum_exp_N,
            temperature=config["soft_temperature"],
            implementation=kernels,
        )
        assert_close(soft, numbers["soft_readout"], 2e-5, "soft_readout")
        total = l1_loss(out.reconstruction, numbers["x"]) + q.vq_loss + q.commit_loss + entropy
        total = total + (soft * numbers["probe"]).mean()
        assert_close(total, numbers["total_loss"], 1e-5, "total_loss")
        total.backward()
        self.check_gradients(tokenizer, numbers)

    @staticmethod
    def check_gradients(tokenizer, numbers):
        gradients, norms = part(numbers, "grad."), part(numbers, "grad_norm.")
        largest = max(g.abs().max().item() for g in gradients.values())
        ours = {name: p.grad for name, p in tokenizer.named_parameters()}
        assert set(ours) == set(gradients) | set(norms)
        for name, theirs in gradients.items():
            assert_close(ours[name], theirs, 2e-4, name, floor=1e-6 * largest)
        for name, theirs in norms.items():
            assert_close(ours[name].norm(), theirs, 2e-4, name, floor=1e-6 * largest)

    def test_decode_and_encode(self, case):
        _, numbers, tokenizer, _ = case
        tokenizer.eval()
        images = tokenizer.decode(numbers["indices"])
        assert_close(images, numbers["decoded_from_indices"], 1e-5, "decoded")
        assert torch.equal(tokenizer.encode(numbers["x"]), numbers["indices"])


class TestGenerator:
    @pytest.fixture
    def case(self):
        config, numbers = read_reference("generator_c2i")
        generator = generator_from(config).eval()
        generator.load_state_dict(part(numbers, "state."))
        return numbers, generator

    def test_logits_tap_and_gradients(self, case):
        numbers, generator = case
        indices, classes = numbers["indices"], ClassCondition(numbers["labels"])
        assert_close(generator.logits(indices[:, :-1], classes), numbers["logits"], 1e-5, "logits")
        out = generator(indices[:, :-1], classes, indices)
        assert_close(out.tap_BLD, numbers["hidden_tap"], 1e-5, "tap")
        assert_close(out.cross_entropy, numbers["cross_entropy"], 1e-5, "cross_entropy")
        out.cross_entropy.backward()
        for name, parameter in generator.named_parameters():
            assert_close(parameter.grad, numbers[f"grad.{name}"], 1e-5, name)

    def test_soft_read_out_and_its_gradient(self, case):
        """Latents whose affinities are log p: the tap of stored distributions, and their gradient.

        d loss / d z_k = 2 p_k (g_k - sum_j p_j g_j), with g the stored d loss / d p.
        """
        numbers, generator = case
        soft = numbers["soft"]
        tokens = _tokens_with_probabilities(soft)
        tokens.latents_BLC.requires_grad_()
        tap = generator(tokens, ClassCondition(numbers["labels"])).tap_BLD
        assert_close(tap, numbers["soft_hidden_tap"], 2e-5, "soft_hidden_tap")
        (tap * numbers["soft_probe"]).mean().backward()
        g = numbers["soft_grad"]
        wanted = 2 * soft * (g - (soft * g).sum(-1, keepdim=True))
        assert_close(tokens.latents_BLC.grad, wanted, 2e-5, "soft_grad")

    @pytest.mark.parametrize("guidance", [1, 3])
    def test_greedy_decoding(self, case, guidance):
        numbers, generator = case
        sampling = SamplingConfig(guidance=guidance, temperature=0)
        labels = numbers["labels"]
        [tokens] = DecodingEngine(generator).generate(
            ClassCondition(labels), range(len(labels)), sampling
        )
        assert torch.equal(tokens.int(), numbers[f"greedy_cfg{guidance}"])


def _tokens_with_probabilities(soft_BLK: torch.Tensor) -> SoftTokens:
    """Latents z = log(p) / 2 against one-hot codes: -|z - c_k|^2 = 2 z_k - |z|^2 - 1."""
    latents = soft_BLK.clamp_min(1e-30).log() / 2
    codebook = torch.eye(soft_BLK.shape[-1])
    affinity = -torch.cdist(latents.double(), codebook.double()).square()
    codes = LearnedCodes(codebook, Affinity.SQUARED_DISTANCE)
    return SoftTokens(latents, codes, affinity.logsumexp(-1).float(), 1.0)


class TestDiscriminator:
    def test_losses_and_statistics(self):
        config, numbers = read_reference("discriminator")
        net = PatchDiscriminator(DiscriminatorConfig(config["ndf"], config["n_layers"])).train()
        before = part(numbers, "state.")
        net.load_state_dict(before)
        real, fake = net(numbers["real"]), net(numbers["fake"])
        assert_close(real, numbers["logits_real"], 1e-5, "logits_real")
        assert_close(fake, numbers["logits_fake"], 1e-5, "logits_fake")
        assert_close(hinge_loss(real, fake), numbers["hinge_loss"], 1e-5, "hinge_loss")
        assert_close(adversarial_loss(fake), numbers["generator_loss"], 1e-5, "generator_loss")
        assert F.mse_loss(net.main[3].running_mean, before["main.3.running_mean"]) > 0

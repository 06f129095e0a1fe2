"""Losses against plain formulas."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gear_dist.config.models import DiscriminatorConfig
from gear_dist.config.training import LossConfig
from gear_dist.errors import ConfigError
from gear_dist.inference.weights import join_states, split_states
from gear_dist.losses.alignment import alignment_loss
from gear_dist.losses.perceptual import SCALE, SHIFT, load_lpips
from gear_dist.losses.reconstruction import gradient_loss
from gear_dist.models.discriminator.lecam import LeCam
from gear_dist.models.discriminator.patchgan import (
    INIT_STD,
    MultiBatchDiscriminator,
    PatchDiscriminator,
    build_discriminator,
)
from gear_dist.training.networks import load_network
from refusals import refused

VGG_CONVS = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
VGG_WIDTHS = [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
VGG_POOLS = [4, 9, 16, 23]
VGG_TAPS = [3, 8, 15, 22, 29]


@pytest.fixture(scope="module")
def lpips_files(tmp_path_factory):
    """Random weights in the public files' layouts."""
    folder = tmp_path_factory.mktemp("lpips")
    torch.manual_seed(0)
    vgg, channels = {"classifier.0.weight": torch.zeros(1)}, 3
    for index, width in zip(VGG_CONVS, VGG_WIDTHS, strict=True):
        vgg[f"features.{index}.weight"] = torch.randn(width, channels, 3, 3) / channels**0.5 / 3
        vgg[f"features.{index}.bias"] = torch.randn(width) / 10
        channels = width
    widths = (64, 128, 256, 512, 512)
    heads = {f"lin{i}.model.1.weight": torch.rand(1, w, 1, 1) for i, w in enumerate(widths)}
    torch.save(vgg, folder / "vgg16.pth")
    torch.save(heads, folder / "heads.pth")
    return folder, vgg, heads


def lpips_config(folder, **changes):
    paths = {
        "lpips_vgg16_path": str(folder / "vgg16.pth"),
        "lpips_heads_path": str(folder / "heads.pth"),
    }
    return LossConfig(**(paths | changes))


def plain_lpips(x, y, vgg, heads):
    """The formula, layer by layer as the public VGG16 numbers them."""
    shift, scale = (torch.tensor(v)[:, None, None] for v in (SHIFT, SCALE))
    taps = []
    for image in (x, y):
        h, found = (image - shift) / scale, []
        for index in range(30):
            if index in VGG_CONVS:
                h = F.conv2d(
                    h, vgg[f"features.{index}.weight"], vgg[f"features.{index}.bias"], padding=1
                )
            elif index in VGG_POOLS:
                h = F.max_pool2d(h, 2)
            else:
                h = F.relu(h)
            if index in VGG_TAPS:
                found.append(h / (h.square().sum(1, keepdim=True).sqrt() + 1e-10))
        taps.append(found)
    terms = [
        ((a - b).square() * heads[f"lin{i}.model.1.weight"]).sum(1).mean((1, 2))
        for i, (a, b) in enumerate(zip(*taps, strict=True))
    ]
    return torch.stack(terms).sum(0).mean()


def test_lpips_is_the_formula_and_reaches_the_reconstruction_only(lpips_files):
    folder, vgg, heads = lpips_files
    lpips = load_lpips(lpips_config(folder))
    torch.manual_seed(1)
    x = (torch.rand(2, 3, 32, 32) * 2 - 1).requires_grad_()
    y = (torch.rand(2, 3, 32, 32) * 2 - 1).requires_grad_()
    ours, theirs = lpips(x, y), plain_lpips(x, y, vgg, heads)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    [wanted] = torch.autograd.grad(theirs, x)
    ours.backward()
    assert torch.allclose(x.grad, wanted, rtol=1e-4, atol=1e-7)
    assert y.grad is None
    assert all(p.grad is None for p in lpips.parameters())
    assert lpips(x, x.detach()).item() == 0


def test_lpips_files_of_another_layout_are_refused(lpips_files, tmp_path):
    folder, vgg, heads = lpips_files
    torch.save({k: v for k, v in vgg.items() if "features.28" not in k}, tmp_path / "short.pth")
    with refused(ConfigError, "losses.lpips_vgg16_path", "12 layers", 13):
        load_lpips(lpips_config(folder, lpips_vgg16_path=str(tmp_path / "short.pth")))
    torch.save({**heads, "lin2.model.1.weight": torch.rand(1, 5, 1, 1)}, tmp_path / "odd.pth")
    with refused(
        ConfigError,
        "losses.lpips_heads_path",
        "lin2.model.1.weight",
        "(1, 256, 1, 1)",
        "(1, 5, 1, 1)",
    ):
        load_lpips(lpips_config(folder, lpips_heads_path=str(tmp_path / "odd.pth")))
    with refused(ConfigError, f"losses.lpips_heads_path={tmp_path / 'nowhere.pth'}"):
        load_lpips(lpips_config(folder, lpips_heads_path=str(tmp_path / "nowhere.pth")))


def test_a_pickle_that_runs_code_is_refused(lpips_files, tmp_path):
    folder, *_ = lpips_files
    torch.save({"features.0.weight": nn.Linear(1, 1)}, tmp_path / "code.pth")
    with refused(ConfigError, f"losses.lpips_vgg16_path={tmp_path / 'code.pth'}", "tensors"):
        load_lpips(lpips_config(folder, lpips_vgg16_path=str(tmp_path / "code.pth")))


def test_alignment_is_the_mean_over_teachers_of_minus_cosines():
    torch.manual_seed(0)
    ours = [torch.randn(2, 5, 7), torch.randn(2, 5, 3)]
    theirs = [torch.randn(2, 5, 7), torch.randn(2, 5, 3)]

    def plain(a, b):
        return (
            -((a / a.norm(dim=-1, keepdim=True)) * (b / b.norm(dim=-1, keepdim=True)))
            .sum(-1)
            .mean()
        )

    wanted = sum(plain(a, b) for a, b in zip(ours, theirs, strict=True)) / 2
    assert alignment_loss(ours, theirs).item() == pytest.approx(wanted.item(), rel=1e-6)
    assert alignment_loss(ours, [3 * x for x in ours]).item() == pytest.approx(-1)


def test_gradient_loss_ignores_a_constant_and_sees_an_edge():
    image = torch.zeros(1, 1, 2, 3)
    edge = image.clone()
    edge[..., 2] = 1
    assert gradient_loss(image, image + 0.7).item() == pytest.approx(0)
    assert gradient_loss(edge, image).item() == pytest.approx(2 / 4)  # 2 of 4 differences are 1


def test_critic_runs_its_batches_one_after_another():
    """Two passes with their own batch statistics, not one over both."""
    torch.manual_seed(0)
    net = PatchDiscriminator(DiscriminatorConfig(8, 1)).train()
    twin = PatchDiscriminator(DiscriminatorConfig(8, 1)).train()
    twin.load_state_dict(net.state_dict())
    a, b = torch.randn(2, 3, 16, 16), torch.randn(2, 3, 16, 16) + 1
    ours = MultiBatchDiscriminator(net)(a, b)
    assert all(torch.equal(x, twin(y)) for x, y in zip(ours, (a, b), strict=True))
    assert net.main[3].num_batches_tracked == 2


GROUPED = DiscriminatorConfig(8, 2, norm="group", norm_groups=4)


def plain_grouped(x, state):
    """The formula of GROUPED, layer by layer."""
    h = F.leaky_relu(F.conv2d(x, state["main.0.weight"], state["main.0.bias"], 2, 1), 0.2)
    for index, stride in ((2, 2), (5, 1)):
        h = F.conv2d(h, state[f"main.{index}.weight"], state[f"main.{index}.bias"], stride, 1)
        groups = h.unflatten(1, (GROUPED.norm_groups, -1))
        mean = groups.mean((2, 3, 4), keepdim=True)
        variance = groups.var((2, 3, 4), unbiased=False, keepdim=True)
        h = ((groups - mean) / (variance + 1e-6).sqrt()).flatten(1, 2)
        weight, bias = (state[f"main.{index + 1}.{name}"] for name in ("weight", "bias"))
        h = F.leaky_relu(h * weight[:, None, None] + bias[:, None, None], 0.2)
    return F.conv2d(h, state["main.8.weight"], state["main.8.bias"], 1, 1)


def test_group_norm_is_the_formula_and_sees_each_image_alone():
    torch.manual_seed(0)
    net = PatchDiscriminator(GROUPED).train()
    state = net.state_dict()
    assert not any("running" in key for key in state)
    images = torch.randn(3, 3, 24, 24)
    out = net(images)
    assert torch.allclose(out, plain_grouped(images, state), rtol=1e-4, atol=1e-5)
    assert torch.allclose(net(images[1:2]), out[1:2], rtol=1e-5, atol=1e-6)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    norms = torch.cat([state[f"main.{i}.weight"] for i in (3, 6)])
    assert norms.mean().item() == pytest.approx(1, abs=INIT_STD)
    assert not state["main.3.bias"].any()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(net(images).float(), out, atol=0.1)


def test_lecam_is_the_formula_over_moving_averages():
    """Against plain numbers in double precision; the averages take no gradient."""
    torch.manual_seed(0)
    lecam, decay = LeCam(0.9), 0.9
    averages = [0.0, 0.0]
    for _ in range(3):
        real = (torch.randn(2, 1, 3, 3) + 1).requires_grad_()
        fake = (torch.randn(2, 1, 3, 3) - 0.5).requires_grad_()
        penalty = lecam(real, fake)
        means = (real.double().mean().item(), fake.double().mean().item())
        averages = [decay * a + (1 - decay) * m for a, m in zip(averages, means, strict=True)]
        ours = torch.stack([lecam.real_average, lecam.fake_average])
        assert torch.allclose(ours.double(), torch.tensor(averages).double(), atol=1e-6)
        above = (real.double() - averages[1]).clamp(min=0).square().mean()
        below = (averages[0] - fake.double()).clamp(min=0).square().mean()
        assert penalty.item() == pytest.approx((above + below).item(), rel=1e-5)
        wanted = torch.autograd.grad(above + below, (real, fake))
        found = torch.autograd.grad(penalty, (real, fake))
        assert all(map(torch.allclose, found, wanted))
    assert not list(lecam.parameters())
    assert set(lecam.state_dict()) == {"real_average", "fake_average"}


def test_lecam_is_no_part_of_the_published_discriminator():
    """A run that starts from one has new averages; the next stage takes the ones it left."""
    assert build_discriminator(DiscriminatorConfig(8, 1)).lecam is None
    config = DiscriminatorConfig(8, 1, lecam_weight=0.1, lecam_decay=0.5)
    critic, other = build_discriminator(config), build_discriminator(config)
    critic.lecam(torch.ones(1), -torch.ones(1))
    states = {"discriminator": critic.state_dict()}
    published = split_states(states)
    assert set(published["discriminator"]) == set(critic.discriminator.state_dict())
    load_network(other, join_states(published)["discriminator"])
    assert other.lecam.real_average == 0
    assert torch.equal(other.discriminator.main[0].weight, critic.discriminator.main[0].weight)
    load_network(other, states["discriminator"])
    assert (other.lecam.real_average, other.lecam.fake_average) == (0.5, -0.5)

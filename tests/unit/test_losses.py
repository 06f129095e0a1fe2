"""Losses against plain formulas."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gear_dist.config import DiscriminatorConfig, LossConfig
from gear_dist.errors import ConfigError
from gear_dist.losses.adversarial import Critic, PatchDiscriminator
from gear_dist.losses.alignment import alignment_loss
from gear_dist.losses.perceptual import SCALE, SHIFT, load_lpips
from gear_dist.losses.reconstruction import gradient_loss

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
    with pytest.raises(ConfigError, match=r"lpips_vgg16_path.*12 layers found, 13 expected"):
        load_lpips(lpips_config(folder, lpips_vgg16_path=str(tmp_path / "short.pth")))
    torch.save({**heads, "lin2.model.1.weight": torch.rand(1, 5, 1, 1)}, tmp_path / "odd.pth")
    with pytest.raises(ConfigError, match=r"lin2\.model\.1\.weight should be \(1, 256, 1, 1\)"):
        load_lpips(lpips_config(folder, lpips_heads_path=str(tmp_path / "odd.pth")))
    with pytest.raises(ConfigError, match=r"lpips_heads_path=.*nowhere"):
        load_lpips(lpips_config(folder, lpips_heads_path=str(tmp_path / "nowhere.pth")))


def test_a_pickle_that_runs_code_is_refused(lpips_files, tmp_path):
    folder, *_ = lpips_files
    torch.save({"features.0.weight": nn.Linear(1, 1)}, tmp_path / "code.pth")
    with pytest.raises(ConfigError, match="not a readable file of tensors"):
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
    ours = Critic(net)(a, b)
    assert all(torch.equal(x, twin(y)) for x, y in zip(ours, (a, b), strict=True))
    assert net.main[3].num_batches_tracked == 2

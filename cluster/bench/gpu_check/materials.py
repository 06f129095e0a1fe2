"""What the steps train on: a corpus, a teacher and LPIPS at random, made once and found again."""

import subprocess
import sys
from pathlib import Path

import torch


def make_corpus(scratch: Path, size: int, images: int) -> Path:
    """A sharded procedural corpus with `train` and `validation`."""
    folder = scratch / f"corpus-{size}-{images}"
    if not (folder / "done").exists():
        gear_dist = [sys.executable, "-m", "gear_dist"]
        counts = ["--size", str(size), "--train", str(images), "--validation", "32"]
        pictures = f"{folder}-images"
        subprocess.run([*gear_dist, "sample-corpus", pictures, *counts, "--overwrite"], check=True)
        subprocess.run([*gear_dist, "shard", pictures, str(folder), "--overwrite"], check=True)
        (folder / "done").touch()
    return folder


def make_teacher(scratch: Path, *, tiny: bool) -> Path:
    """A DINOv2 at random: the published base, or one of two blocks."""
    import transformers

    folder = scratch / ("teacher-tiny" if tiny else "teacher-base")
    if not folder.exists():
        sizes = {"hidden_size": 24, "num_attention_heads": 2, "num_hidden_layers": 2}
        config = transformers.Dinov2Config(patch_size=14, image_size=518, **(sizes if tiny else {}))
        partial = scratch / f"{folder.name}.partial"
        transformers.Dinov2Model(config).save_pretrained(partial)
        partial.rename(folder)
    return folder


def make_lpips(scratch: Path) -> list[str]:
    """Settings that name LPIPS's two files, of the published layout, at random."""
    from torch import nn

    from gear_dist.losses.perceptual import LPIPS

    vgg, heads = scratch / "vgg16.pth", scratch / "lpips.pth"
    if not heads.exists():
        model = LPIPS()
        convolutions = [m for m in model.stages.modules() if isinstance(m, nn.Conv2d)]
        # Where torchvision's VGG16 has them, between its ReLUs and poolings.
        places = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
        state = {}
        for place, layer in zip(places, convolutions, strict=True):
            state[f"features.{place}.weight"] = layer.weight.detach()
            assert layer.bias is not None
            state[f"features.{place}.bias"] = layer.bias.detach()
        torch.save(state, vgg)
        weights = {
            f"lin{i}.model.1.weight": head.weight.detach().abs()
            for i, head in enumerate(model.heads)
        }
        torch.save(weights, heads)
    return [f"losses.lpips_vgg16_path={vgg}", f"losses.lpips_heads_path={heads}"]

"""Small convolutional classifiers trained in memory: the convnet teacher and evaluation's judge."""

import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from gear_dist.data.labelled import UNKNOWN, LabelledImages
from gear_dist.data.pixels import to_model_range
from gear_dist.errors import ConfigError, NumericError
from gear_dist.storage.atomic import write_file


class FitSettings(NamedTuple):
    """How `fit` trains; whichever of `steps` and `seconds` is used up first ends it."""

    steps: int
    seconds: float
    batch: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 0.02
    label_smoothing: float = 0.0
    shift: float = 0.1
    """Largest random shift, as a share of the image's side; the border is replicated."""
    flip: bool = True
    """Mirror half of the images; off where targets depend on left and right."""
    seed: int = 0


class FitResult(NamedTuple):
    """What `fit` did."""

    steps: int
    seconds: float
    loss: float


def fit(
    model: nn.Module,
    data: LabelledImages,
    settings: FitSettings,
    *,
    device: torch.device | str = "cpu",
    report: Callable[[str], None] = lambda line: None,
) -> FitResult:
    """Train `model` in place on all targets it has a head for, then put it in evaluation mode.

    loss = sum of the targets' cross-entropies, each a mean over the samples that know it (a mean
    over targets leaves subtle ones, such as hue, unlearnt); AdamW with a one-cycle rate.
    `model(images)` takes (B, 3, H, W) float32 in [-1, 1] and returns logits by target name
    ("class" and attribute names). Reports a line about every ten seconds, with one host
    synchronisation each.

    Raises:
        NumericError: the loss is not finite at a report or at the end.
    """
    model.to(device).train()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(
        model.parameters(), settings.learning_rate, weight_decay=settings.weight_decay, fused=True
    )
    order = torch.Generator().manual_seed(settings.seed)
    targets = {name: values.to(device) for name, values in data.targets().items()}
    start = last_report = time.monotonic()
    epoch, step, progress, loss = torch.empty(0, dtype=torch.long), 0, 0.0, torch.zeros(())
    while progress < 1:
        if len(epoch) < min(settings.batch, len(data.images)):
            epoch = torch.randperm(len(data.images), generator=order)
        picked, epoch = epoch[: settings.batch], epoch[settings.batch :]
        images = augment(data.images[picked], settings, order).to(device)
        with convolution_autocast(device):
            logits = model(model_input(images))
        loss = _total_loss(logits, targets, picked.to(device), settings.label_smoothing)
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * _one_cycle(progress)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        now = time.monotonic()
        progress = max(step / settings.steps, (now - start) / settings.seconds)
        if now - last_report >= 10 and progress < 1:
            last_report = now
            report(f"step {step} ({progress:.0%}): loss {_finite(loss, step):.3f}")
    model.eval()
    return FitResult(step, time.monotonic() - start, _finite(loss, step))


def predict(
    model: nn.Module, images: Tensor, *, device: torch.device | str = "cpu", batch: int = 256
) -> dict[str, Tensor]:
    """Logits by target name of uint8 images (N, 3, H, W), fp32 on the CPU, model in eval mode."""
    parts: list[dict[str, Tensor]] = []
    with torch.inference_mode(), convolution_autocast(device):
        for chunk in images.split(batch):
            logits = model(model_input(chunk.to(device)))
            parts.append({name: values.float().cpu() for name, values in logits.items()})
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def accuracies(
    model: nn.Module, data: LabelledImages, *, device: torch.device | str = "cpu"
) -> dict[str, float]:
    """Share of known targets that the model's heads predict, by target name.

    nan where no sample knows the target; targets that the data does not have are left out.
    """
    result = {}
    targets = data.targets()
    for name, logits in predict(model, data.images, device=device).items():
        if name not in targets:
            continue
        known = targets[name] != UNKNOWN
        hits = logits.argmax(1)[known] == targets[name][known]
        result[name] = hits.float().mean().item()
    return result


def model_input(images: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) to float32 in [-1, 1], channels last."""
    return to_model_range(images).contiguous(memory_format=torch.channels_last)


def augment(images: Tensor, settings: FitSettings, generator: torch.Generator) -> Tensor:
    """Shift (one offset for the batch) and mirror half of uint8 images (B, 3, H, W)."""
    side = images.shape[-1]
    reach = round(settings.shift * side)
    if reach:
        padded = F.pad(images.float(), (reach,) * 4, mode="replicate").to(images.dtype)
        row, column = torch.randint(0, 2 * reach + 1, (2,), generator=generator).tolist()
        images = padded[:, :, row : row + side, column : column + side]
    if settings.flip:
        mirrored = torch.rand(len(images), generator=generator) < 0.5
        images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
    return images


def convolution_autocast(device: torch.device | str) -> AbstractContextManager[None]:
    """bf16 autocast where the hardware multiplies bf16 faster than fp32, else no change."""
    kind = torch.device(device).type
    fast = torch.cuda.is_bf16_supported() if kind == "cuda" else _cpu_has_bfloat16()
    return torch.autocast(kind, torch.bfloat16, enabled=fast)


def save_classifier(path: Path, model: nn.Module, metadata: dict[str, Any]) -> None:
    """Publish weights (fp32 safetensors) with their metadata (JSON) atomically.

    Raises:
        ConfigError: `path` holds another kind of file, which is not overwritten.
        StorageError: the disk refuses the write.
    """
    if path.exists() and load_classifier(path) is None:
        raise ConfigError(
            f"{path}: is not a file of this command and will not be overwritten; "
            f"move it or choose another path"
        )
    weights = {name: value.cpu().contiguous() for name, value in model.state_dict().items()}
    write_file(path, save(weights, {"facts": json.dumps(metadata)}))


def load_classifier(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """Metadata and weights of a file of `save_classifier`; None if there is none."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {})["facts"])
            return metadata, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, ValueError):
        return None


def _cpu_has_bfloat16() -> bool:
    # Without these instructions bf16 convolutions are emulated, slower than fp32.
    found = torch.cpu.get_capabilities()
    return bool(found.get("amx_bf16") or found.get("avx512_bf16"))


def _total_loss(
    logits: dict[str, Tensor], targets: dict[str, Tensor], picked: Tensor, smoothing: float
) -> Tensor:
    losses = []
    for name, values in logits.items():
        wanted = targets[name][picked]
        total = F.cross_entropy(
            values.float(),
            wanted,
            ignore_index=UNKNOWN,
            reduction="sum",
            label_smoothing=smoothing,
        )
        losses.append(total / (wanted != UNKNOWN).sum().clamp(min=1))
    return torch.stack(losses).sum()


def _one_cycle(progress: float, rise: float = 0.15) -> float:
    if progress < rise:
        return 0.1 + 0.9 * progress / rise
    return max(0.0, (1 - progress) / (1 - rise))


def _finite(loss: Tensor, step: int) -> float:
    value = loss.item()
    if value != value or value in (float("inf"), float("-inf")):
        raise NumericError(
            f"classifier training: loss is {value} at step {step}; lower the learning rate or "
            "look for broken images in the corpus"
        )
    return value

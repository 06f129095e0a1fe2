"""Commands that use trained weights: `sample` and `reconstruct`."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from gear_dist.arguments import MAX_GRID_IMAGES, MAX_SEED, number, path_argument, whole
from gear_dist.config import RunConfig, SamplingConfig
from gear_dist.errors import ConfigError, DataError
from gear_dist.model_folder import ModelFolder, open_model
from gear_dist.run_folder import RunFolder

COLUMNS = 8
MODEL_HELP = "run folder, such as runs/demo, or an imported model's folder"
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def add_commands(subparsers: Any) -> None:
    """Add `sample` and `reconstruct`."""
    sample = subparsers.add_parser("sample", help="generate images with averaged weights")
    sample.add_argument("model", type=path_argument, metavar="MODEL", help=MODEL_HELP)
    sample.add_argument(
        "--classes", default="", help="comma-separated classes (default: all of the corpus)"
    )
    sample.add_argument(
        "--count", type=whole(0, MAX_GRID_IMAGES), default=0, help="images in all (default: 64)"
    )
    for item in dataclasses.fields(SamplingConfig):
        flag = "--" + item.name.replace("_", "-")
        kind = whole() if isinstance(item.default, int) else number()
        sample.add_argument(flag, type=kind, help="default: the run's sampling." + item.name)
    _add_shared(sample, "samples.png")
    sample.set_defaults(run=run_sample)

    reconstruct = subparsers.add_parser(
        "reconstruct", help="show images beside what the tokenizer makes of them"
    )
    reconstruct.add_argument("model", type=path_argument, metavar="MODEL", help=MODEL_HELP)
    reconstruct.add_argument(
        "--images", type=path_argument, help="folder of images (default: a run's validation corpus)"
    )
    reconstruct.add_argument(
        "--count", type=whole(1, MAX_GRID_IMAGES), default=32, help="images (default: 32)"
    )
    _add_shared(reconstruct, "reconstruction.png")
    reconstruct.set_defaults(run=run_reconstruct)


def _add_shared(parser: argparse.ArgumentParser, name: str) -> None:
    parser.add_argument("--seed", type=whole(0, MAX_SEED), default=0, help="seed (default: 0)")
    parser.add_argument("--out", type=path_argument, help=f"PNG to write (default: MODEL/{name})")
    parser.add_argument(
        "--columns", type=whole(1, 10_000), default=COLUMNS, help="images a row (default: 8)"
    )
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu"))


def parse_classes(text: str, num_classes: int, names: list[str] | None = None) -> list[int]:
    """Classes by index or by name, comma-separated; empty: all that the corpus has.

    Raises:
        ConfigError: a class that the generator does not have.
    """
    if not text:
        # Of more classes than the corpus has, the rest was never trained.
        return list(range(len(names) if names else num_classes))
    by_name = {name: i for i, name in enumerate(names or [])}
    classes = []
    for word in (part.strip() for part in text.split(",")):
        index = int(word) if word.lstrip("-").isdigit() else by_name.get(word, -1)
        if not 0 <= index < num_classes:
            allowed = f"0 .. {num_classes - 1}" + (f" or {', '.join(by_name)}" if by_name else "")
            raise ConfigError(f"--classes {word}: no such class; use {allowed}")
        classes.append(index)
    return classes


def sampling_from(args: argparse.Namespace, config: RunConfig) -> SamplingConfig:
    """The run's sampling settings with the command's in their place."""
    given = {f.name: getattr(args, f.name) for f in dataclasses.fields(SamplingConfig)}
    changes = {name: value for name, value in given.items() if value is not None}
    return dataclasses.replace(config.sampling, **changes)


def class_names(model: ModelFolder) -> list[str]:
    """Names of the classes, where a run recorded its corpus."""
    return list(RunFolder(model.path).read_environment().get("data", {}).get("classes", []))


def _class_name(index: int, names: list[str]) -> str:
    return names[index] if index < len(names) else f"class {index}"


def run_sample(args: argparse.Namespace) -> int:
    """Write a grid of generated images."""
    import torch

    from gear_dist.grids import NUM_SAMPLES, grid_labels
    from gear_dist.images_grid import save_grid
    from gear_dist.trained_pair import TrainedPair

    model = open_model(args.model)
    config = model.config
    sampling = sampling_from(args, config)
    names = class_names(model)
    classes = parse_classes(args.classes, config.generator.num_classes, names)
    pair = TrainedPair.load(model, choose_device(args.device))
    labels = torch.tensor(classes)[grid_labels(len(classes), args.count or NUM_SAMPLES)]
    images = pair.generate(labels, args.seed, sampling)
    out = args.out or model.path / "samples.png"
    captions = [_class_name(i, names) for i in labels.tolist()] if names else None
    save_grid(images, out, args.columns, captions=captions)
    print(out)
    return 0


def run_reconstruct(args: argparse.Namespace) -> int:
    """Write a grid of originals over reconstructions, and print the PSNR."""
    import torch

    from gear_dist.evaluation.reconstruction import psnr
    from gear_dist.grids import first_images
    from gear_dist.images_grid import pair_rows, save_grid
    from gear_dist.trained_pair import TrainedPair

    model = open_model(args.model)
    config = model.config
    pair = TrainedPair.load(model, choose_device(args.device))
    if args.images:
        paths = image_paths(args.images)[: args.count]
        images = torch.stack([read_image(path, config) for path in paths])
    elif config.data.train or config.data.validation:
        images = first_images(config, args.count)
    else:
        raise ConfigError(f"{model.path} names no corpus: give --images FOLDER")
    rebuilt = pair.reconstruct(images)
    out = args.out or model.path / "reconstruction.png"
    save_grid(pair_rows(images.numpy(), rebuilt.numpy(), args.columns), out, args.columns)
    print(f"{out}  ({len(images)} images, PSNR {psnr(images, rebuilt).mean():.2f} dB)")
    return 0


def image_paths(folder: Path) -> list[Path]:
    """Image files of a folder and its subfolders, by name.

    Raises:
        DataError: there is none.
    """
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise DataError(f"--images {folder}: no images ({', '.join(IMAGE_SUFFIXES)}) found")
    return paths


def read_image(path: Path, config: RunConfig) -> Any:
    """An image, resized and centre-cropped, uint8 (3, H, W).

    Raises:
        DataError: it does not decode.
    """
    import numpy as np
    import torch

    from gear_dist.colour import parse_colour
    from gear_dist.data.images import BadImageError, crop, decode_image, resize_short_side

    size = config.data.image_size
    background = parse_colour(config.data.background)
    try:
        image = decode_image(path.read_bytes(), config.data.max_pixels, background)
    except (OSError, BadImageError) as error:
        raise DataError(f"{path}: {error}") from None
    square = crop(resize_short_side(image, size), size)
    return torch.from_numpy(np.asarray(square).transpose(2, 0, 1).copy())


def choose_device(name: str) -> Any:
    """The device of a command's --device."""
    import torch

    use_cuda = name == "cuda" or (name == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if use_cuda else "cpu")

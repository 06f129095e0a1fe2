"""`gear-dist tokenize`: a folder of images to indices, for training elsewhere or for inspection."""

import argparse
from typing import Any

from gear_dist.cli.arguments import (
    add_device,
    output_folder,
    path_argument,
    read_device,
    whole,
)
from gear_dist.cli.sample import MODEL_HELP, add_bad_share
from gear_dist.inference.model_folder import open_model
from gear_dist.storage.atomic import write_file
from gear_dist.storage.json_files import to_json

INDICES_NAME = "indices.npy"
FILES_NAME = "files.json"
LEFT_OUT_NAME = "left_out.json"


def add_commands(subparsers: Any) -> None:
    """Add `tokenize`."""
    parser = subparsers.add_parser(
        "tokenize",
        help="write the codes of a folder of images",
        description=f"Resize and centre-crop every image, encode it, and write OUT/{INDICES_NAME} "
        f"(int32, one row per image, tokens in raster order) and OUT/{FILES_NAME} (the file of "
        f"each row, relative to the folder); OUT/{LEFT_OUT_NAME} lists undecodable files.",
    )
    parser.add_argument("model", type=path_argument, metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("--images", type=path_argument, required=True, help="folder of images")
    parser.add_argument("--out", type=output_folder, required=True, help="folder to write to")
    parser.add_argument("--batch", type=whole(1), default=16, help="batch size (default: 16)")
    add_bad_share(parser)
    add_device(parser)
    parser.set_defaults(run=run_tokenize)


def run_tokenize(args: argparse.Namespace) -> int:
    """Write the indices of every image, in the order of the files' names; 0.

    Memory holds one batch of images and all indices.

    Raises:
        DataError: no images, too many that do not decode, no tokenizer.
    """
    import io
    import itertools

    import numpy as np
    import torch

    from gear_dist.inference.image_files import ImageFiles, image_paths
    from gear_dist.inference.pipeline import GearPipeline

    model = open_model(args.model)
    files = ImageFiles(image_paths(args.images), model.config.data, args.max_bad_share)
    pair = GearPipeline.load(model, read_device(args))
    indices = np.empty((len(files.paths), model.config.num_tokens), np.int32)
    names: list[str] = []
    read = iter(files)
    while batch := list(itertools.islice(read, args.batch)):
        codes = pair.encode(torch.stack([image for _, image in batch])).numpy()
        indices[len(names) : len(names) + len(batch)] = codes
        names += [path.relative_to(args.images).as_posix() for path, _ in batch]
    indices = indices[: len(names)]
    buffer = io.BytesIO()
    np.save(buffer, indices)
    left_out = {path.relative_to(args.images).as_posix(): reason for path, reason in files.bad}
    write_file(args.out / LEFT_OUT_NAME, (to_json(left_out, indent=1) + "\n").encode())
    write_file(args.out / FILES_NAME, (to_json(names) + "\n").encode())
    write_file(args.out / INDICES_NAME, buffer.getvalue())
    used = len(np.unique(indices))
    print(
        f"{args.out / INDICES_NAME}  ({len(names)} images, {indices.shape[1]} tokens each, {used} "
        f"of {model.config.tokenizer.codebook_size} codes used)"
    )
    return 0

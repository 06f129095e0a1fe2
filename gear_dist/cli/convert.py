"""`gear-dist import` and `gear-dist export`."""

import argparse
from typing import Any

from gear_dist.checkpoints.layout import MANIFEST
from gear_dist.cli.arguments import path_argument
from gear_dist.storage.paths import local_path


def add_commands(subparsers: Any) -> None:
    """Add `import` and `export`."""
    import_ = subparsers.add_parser(
        "import",
        help="convert public checkpoints of tokenizers and generators to a model folder",
        description="Read checkpoints of GEAR, LlamaGen, Open-MAGVIT2 or IBQ and write a folder "
        "that reconstruct, tokenize, sample, export and stages.init_from take. Pickles run no "
        "code: one that needs more than tensors is refused.",
    )
    import_.add_argument(
        "sources",
        metavar="SOURCE",
        nargs="+",
        help="a file, or OWNER/REPOSITORY/FILE of the Hugging Face hub",
    )
    import_.add_argument("--out", type=path_argument, required=True, help="folder to create")
    import_.add_argument(
        "--weights",
        default="ema",
        choices=("ema", "live"),
        help="which copy to use if there are two (default: ema)",
    )
    import_.add_argument(
        "--set",
        dest="overrides",
        metavar="key=value",
        nargs="+",
        default=[],
        help="settings that cannot be inferred from tensor shapes, such as generator.num_heads=8 "
        "or data.image_size=384",
    )
    import_.set_defaults(run=run_import)

    export = subparsers.add_parser(
        "export",
        help="export a run's networks, with a model card",
    )
    export.add_argument(
        "model",
        metavar="RUN",
        help="run folder, model folder, or one checkpoint: a folder, or s3://BUCKET/.../step-...",
    )
    export.add_argument("--out", type=path_argument, required=True, help="folder to create")
    export.add_argument(
        "--layout",
        default="gear",
        choices=("gear", "public"),
        help="gear: safetensors and config.json; public: the .pt files that the public code of "
        "LlamaGen, Open-MAGVIT2 and GEAR reads (default: gear)",
    )
    export.add_argument(
        "--weights",
        default="ema",
        choices=("ema", "live"),
        help="of a checkpoint: averaged weights, or the weights being trained (default: ema)",
    )
    export.add_argument("--endpoint", default="", help="S3 endpoint of a checkpoint's address")
    export.set_defaults(run=run_export)


def run_import(args: argparse.Namespace) -> int:
    """Import, and print what was used, dropped and missing; 0."""
    from gear_dist.interop.import_public import import_checkpoints

    report = import_checkpoints(args.sources, args.out, copy=args.weights, overrides=args.overrides)
    for line in report.lines():
        print(line)
    print(args.out)
    return 0


def run_export(args: argparse.Namespace) -> int:
    """Export, and print the files; 0."""
    from gear_dist.inference.model_folder import open_model
    from gear_dist.interop.export import export_model

    if not is_checkpoint(args.model):
        files = export_model(open_model(args.model), args.out, args.layout)
    else:
        from gear_dist.inference.consolidate import consolidated

        with consolidated(args.model, args.weights, args.endpoint) as model:
            files = export_model(model, args.out, args.layout)
    for path in files:
        print(path)
    return 0


def is_checkpoint(address: str) -> bool:
    """Whether an address names a checkpoint rather than a run or model folder."""
    return "://" in address or (local_path(address) / MANIFEST).is_file()

"""Commands on a finished corpus: `verify`, `repair`, `stats`, `preview`."""

import argparse
import io
import json
import os
from typing import Any

from gear_dist.cli.arguments import (
    MAX_GRID_IMAGES,
    MAX_SEED,
    colour_argument,
    output_file,
    whole,
)
from gear_dist.config.checks import MAX_THREADS
from gear_dist.config.colour import WHITE
from gear_dist.errors import DataError


def add_corpus_commands(subparsers: Any) -> None:
    """Add the commands to the command line."""
    verify = _add(subparsers, "verify", "check a corpus against its manifest", _verify)
    _add_verify_options(verify)
    repair = _add(subparsers, "repair", "rewrite broken or missing shards", _repair)
    _add_verify_options(repair)
    repair.add_argument("--source", default="", help="where the source is now, if it moved")
    repair.add_argument(
        "--workers",
        type=whole(1, MAX_THREADS),
        default=os.cpu_count() or 1,
        metavar="N",
        help="processes",
    )
    stats = _add(subparsers, "stats", "classes, sizes and captions of a corpus", _stats)
    stats.add_argument(
        "--html", type=output_file(), metavar="FILE", help="write a page with pictures"
    )
    stats.add_argument(
        "--attribution",
        type=output_file(".csv"),
        metavar="FILE",
        help="write licence and attribution of every image that states one, as CSV",
    )
    stats.add_argument(
        "--prompts",
        type=output_file(),
        metavar="FILE",
        help="write the first caption of each image, one a line, for gear-dist sample --prompts",
    )
    preview = _add(subparsers, "preview", "a contact sheet of a corpus as PNG", _preview)
    preview.add_argument(
        "--out", type=output_file(".png"), required=True, metavar="FILE", help="the PNG"
    )
    for name, kind, default, text in (
        ("--count", whole(1, MAX_GRID_IMAGES), 64, "images"),
        ("--side", whole(1, 4096), 128, "pixels of each"),
        ("--seed", whole(0, MAX_SEED), 0, "seed for choosing the images"),
    ):
        preview.add_argument(name, type=kind, default=default, metavar="N", help=text)
    preview.add_argument(
        "--background",
        type=colour_argument,
        default=WHITE,
        metavar="COLOUR",
        help="what shows through transparent pixels: a name, #rrggbb or r,g,b (default: white)",
    )


def _add(subparsers: Any, name: str, text: str, run: Any) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(name, help=text, description=text)
    parser.add_argument(
        "corpus", metavar="CORPUS", help="s3://BUCKET/PREFIX/train or a folder: one split"
    )
    parser.add_argument("--endpoint", default="", metavar="TEXT", help="S3 endpoint")
    parser.add_argument("--json", action="store_true", help="a JSON summary on standard output")
    parser.set_defaults(run=run)
    return parser


def _add_verify_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--sample", type=whole(), default=0, metavar="N", help="read N shards only (default: all)"
    )
    parser.add_argument("--decode", action="store_true", help="decode every image strictly")
    parser.add_argument(
        "--seed",
        type=whole(0, MAX_SEED),
        default=0,
        metavar="N",
        help="seed for choosing the shards (--sample)",
    )


def _check(args: argparse.Namespace) -> Any:
    from gear_data_prep.corpus_tools.verify import VerifySettings, verify_corpus
    from gear_dist.storage.open import open_storage

    storage = open_storage(args.corpus, args.endpoint)
    return storage, verify_corpus(storage, VerifySettings(args.sample, args.decode, args.seed))


def _verify(args: argparse.Namespace) -> int:
    from gear_data_prep.corpus_tools.verify import dump_result

    storage, result = _check(args)
    if args.json:
        print(dump_result(storage.address, result))
    else:
        for fault in result.faults:
            print(f"verify: {fault.key}: {fault.what}")
        rate = result.num_bytes / max(result.seconds, 1e-6) / 1e6
        print(
            f"verify: {storage.address}: {result.num_shards:,} shards read, "
            f"{result.num_bytes / 1e6:,.1f} MB, {rate:,.0f} MB/s, {len(result.faults)} faults"
        )
    if result.faults:
        raise DataError(
            f"{storage.address}: {len(result.faults)} faults: `gear-dist repair CORPUS` mends them"
        )
    return 0


def _repair(args: argparse.Namespace) -> int:
    from gear_data_prep.corpus_tools.repair import repair_corpus

    storage, found = _check(args)
    result = repair_corpus(
        storage, found, source=args.source, endpoint=args.endpoint, workers=args.workers
    )
    _, after = _check(args)
    node = {"faults": len(found.faults), **result._asdict(), "faults_left": len(after.faults)}
    if args.json:
        print(json.dumps(node, indent=1))
    else:
        whole = " (the whole corpus: its manifest was damaged)" if result.remade else ""
        print(
            f"repair: {storage.address}: {len(found.faults)} faults, {result.num_shards} shards "
            f"rewritten{whole}, {result.num_removed} objects removed"
        )
    if after.faults:
        first = after.faults[0]
        raise DataError(f"{storage.address}: still faulty: {first.key}: {first.what}")
    return 0


def _stats(args: argparse.Namespace) -> int:
    from gear_data_prep.corpus_tools.stats import as_table, measure_corpus
    from gear_data_prep.corpus_tools.stats_page import render_page
    from gear_dist.storage.atomic import write_text
    from gear_dist.storage.open import open_storage

    storage = open_storage(args.corpus, args.endpoint)
    stats = measure_corpus(storage, _other_split(args))
    if args.attribution:
        _write_attribution(storage, args.attribution)
    if args.prompts:
        _write_prompts(args.corpus, args.endpoint, args.prompts)
    if args.html:
        write_text(args.html, render_page(storage, stats))
    print(json.dumps(stats._asdict(), indent=1) if args.json else as_table(stats))
    return 0


def _write_attribution(storage: Any, path: Any) -> None:
    from gear_dist.data.manifest import load_manifest
    from gear_dist.data.origins import origins_keys, write_attribution
    from gear_dist.storage.atomic import atomic_file

    manifest = load_manifest(storage)
    if not origins_keys(manifest.info):
        raise DataError(
            f"--attribution {path}: {storage.address} states no licence or attribution: shard it "
            "from tars or parquet files that do, or leave the option out"
        )
    with atomic_file(path) as stream:
        text = io.TextIOWrapper(stream, "utf-8", newline="")
        try:
            write_attribution(text, storage, manifest)
        finally:
            text.detach()  # the stream is the atomic file's to close


def _write_prompts(corpus: str, endpoint: str, path: Any) -> None:
    from gear_dist.data.captions import iterate_first_captions
    from gear_dist.data.corpus import open_corpus
    from gear_dist.storage.atomic import write_text

    prompts = list(iterate_first_captions(open_corpus(corpus, endpoint)))
    if not prompts:
        raise DataError(f"--prompts {path}: {corpus} has no captions: leave the option out")
    write_text(path, "\n".join(prompts) + "\n")


def _other_split(args: argparse.Namespace) -> Any:
    """The finished corpus beside this one, where its name is that of a split."""
    from gear_dist.data.manifest import DATASET_KEY
    from gear_dist.storage.addresses import join_address, parse_address, split_address
    from gear_dist.storage.open import open_storage

    name = parse_address(args.corpus).path.rstrip("/").rpartition("/")[2]
    beside = {"train": "validation", "validation": "train"}.get(name)
    if beside is None:
        return None
    parent, _ = split_address(args.corpus)
    storage = open_storage(join_address(parent, beside), args.endpoint)
    return storage if storage.exists(DATASET_KEY) else None


def _preview(args: argparse.Namespace) -> int:
    from gear_data_prep.corpus_tools.preview import attribution_metadata, contact_sheet
    from gear_dist.storage.atomic import atomic_file
    from gear_dist.storage.open import open_storage

    storage = open_storage(args.corpus, args.endpoint)
    sheet = contact_sheet(
        storage, args.count, side=args.side, seed=args.seed, background=args.background
    )
    with atomic_file(args.out) as stream:
        sheet.save(stream, format="PNG", optimize=True, pnginfo=attribution_metadata(sheet))
    node = {"out": str(args.out), "width": sheet.width, "height": sheet.height}
    print(json.dumps(node) if args.json else f"preview: {args.out}")
    return 0

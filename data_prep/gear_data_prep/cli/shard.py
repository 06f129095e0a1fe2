"""`gear-dist shard`: a corpus of any kind to shards with a manifest."""

import argparse
import json
import os
import time
from collections.abc import Callable
from typing import Any

from gear_data_prep.policies import describe_policies, parse_policies
from gear_dist.cli.arguments import MAX_SEED, colour_argument, number, whole
from gear_dist.config.checks import MAX_SIDE, MAX_THREADS
from gear_dist.config.colour import WHITE, hex_colour
from gear_dist.errors import ConfigError
from gear_dist.storage.addresses import join_address, parse_address
from gear_dist.storage.paths import local_path

_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_MAX_DIGITS = 18
"""Of a number of bytes; int() refuses to read thousands of them."""
_MIN_RATE = 0.001
_KINDS_WITH_ORIGINS = ("webdataset", "parquet")
_KINDS = ("auto", "folder", "imagenet", "webdataset", "parquet", "urls")
_TEXT = """\
Shards SOURCE into DESTINATION/train and, where there is one, DESTINATION/validation.

SOURCE, a path or s3:// address, is one of:
  folder      {train,val}/CLASS/NAME.jpg or CLASS/NAME.jpg; NAME.txt is the caption, NAME.json the
              attributes
  imagenet    the folder of ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar
  webdataset  tars of {key}.jpg with {key}.txt, {key}.json ("caption") or {key}.cls
  parquet     Hugging Face layout: image bytes and captions
              (both: caption_type, split, license, license_url and attribution are kept)
  urls        a parquet, CSV or TSV table of url and caption; images are fetched first, and rows
              without one count towards --max-bad-share

Run again after an interruption it continues; a finished corpus is reused.
"""
_EPILOG = "policies (--policy KIND=ACTION; the first action is the default):\n"


def add_shard(subparsers: Any) -> None:
    """Add `shard` to the command line."""
    parser = subparsers.add_parser(
        "shard",
        help="convert images with classes or captions to shards, in a folder or on S3",
        description=_TEXT,
        epilog=_EPILOG + describe_policies(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("destination", metavar="DESTINATION", help="s3://BUCKET/PREFIX or a folder")
    parser.add_argument("--kind", choices=_KINDS, default="auto", help="type of SOURCE")
    _add_shard_options(parser)
    _add_sample_options(parser)
    _add_filter_options(parser)
    _add_source_options(parser)
    _add_fetch_options(parser)
    _add_run_options(parser)
    parser.set_defaults(run=_shard)


def add_option(
    parser: Any, name: str, kind: Callable[[str], Any], default: object, text: str
) -> None:
    """An option whose default is shown."""
    metavar = {int: "N", float: "NUMBER", str: "TEXT"}[type(default)]
    help_text = f"{text} (default: %(default)r)"
    parser.add_argument(name, type=kind, default=default, metavar=metavar, help=help_text)


def _add_shard_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("shards")
    for name, kind, default, text in (
        ("--shard-samples", whole(1), 1000, "most samples per shard"),
        ("--shard-bytes", str, "256M", "most bytes per shard, with K, M or G"),
        ("--seed", whole(0, MAX_SEED), 0, "shuffle seed"),
        (
            "--validation-share",
            number(0, 1),
            0.1,
            "share held out if SOURCE has no validation split",
        ),
        ("--block-samples", whole(1), 16, "most neighbouring samples of a tar that stay together"),
    ):
        add_option(group, name, kind, default, text)
    group.add_argument(
        "--without-duplicates-of",
        metavar="CORPUS",
        default="",
        help="drop images that occur more than once in CORPUS, an earlier result of this command "
        "for the same source and settings; an image in both splits stays in validation only",
    )


def _add_sample_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("samples")
    group.add_argument(
        "--check",
        choices=("header", "decode", "strict"),
        default="strict",
        help="how images are checked; strict finds corruption that decoders accept (default)",
    )
    for name, kind, default, text in (
        ("--max-pixels", whole(1), 64_000_000, "larger images are rejected"),
        ("--max-bytes", str, "64M", "longer files are rejected"),
        (
            "--max-bad-share",
            number(0, 1),
            0.01,
            "a larger share of bad or unfetched samples is an error",
        ),
        (
            "--short-side",
            whole(0, 65_536),
            0,
            "resize to this short side, pixels; 0: copy as they are",
        ),
        ("--quality", whole(0, 100), 98, "JPEG quality of resized images"),
    ):
        add_option(group, name, kind, default, text)
    group.add_argument(
        "--filter",
        choices=("bicubic", "area"),
        default="bicubic",
        help="bicubic: PIL's, the default; area: means of the area that a pixel covers, faster",
    )
    group.add_argument(
        "--subsampling",
        choices=("444", "420"),
        default="444",
        help="chroma of resized images: 444 keeps all of it, the default",
    )
    group.add_argument(
        "--background",
        type=colour_argument,
        default=WHITE,
        metavar="COLOUR",
        help="what shows through transparent pixels where pixels are re-encoded: a name, #rrggbb "
        "or r,g,b (default: white); images that are copied get the loader's data.background",
    )
    group.add_argument(
        "--keep-original", action="store_true", help="keep KEY.original.SUFFIX beside a resized one"
    )
    group.add_argument(
        "--policy",
        action="append",
        default=[],
        metavar="KIND=ACTION",
        help="action for a category of irregular samples: see below",
    )


def _add_filter_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("filters (what they leave out is counted, and no bad sample)")
    for name, metavar, text in (
        ("--subsets", "NAME,...", "only these parts of the source, such as GPIC's nano,lite"),
        ("--licenses", "PATTERN,...", "only these licences, in any case, such as cc0*,cc-by-4.0"),
        ("--caption-types", "TYPE,...", "only captions of these types, and images that have one"),
    ):
        group.add_argument(name, type=_names, default=(), metavar=metavar, help=text)
    text = "images whose shorter side has fewer pixels are left out"
    add_option(group, "--min-side", whole(0, MAX_SIDE), 0, text)


def _names(text: str) -> tuple[str, ...]:
    """Names with commas between them."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    if "" in names:
        raise argparse.ArgumentTypeError(
            f"{text!r} has an empty name: give names with commas between them, or leave it out"
        )
    return names


def _add_source_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("source")
    for name, text in (
        ("--classes", "file of class names, one per line, for sources that only have numbers"),
        ("--labels", "imagenet: file of the validation images' classes"),
        ("--image-column", "parquet: column of image bytes"),
        (
            "--caption-column",
            "parquet, urls: column of captions; webdataset: JSON member",
        ),
        ("--class-column", "parquet and urls: column of class indices or names"),
        ("--url-column", "urls: column of addresses"),
    ):
        group.add_argument(name, default="", metavar="NAME", help=text)


def _add_fetch_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("fetching (urls)")
    group.add_argument(
        "--fetched",
        default="",
        metavar="ADDRESS",
        help="where images are kept (default: DESTINATION/fetched)",
    )
    for name, kind, default, text in (
        ("--connections", whole(1, MAX_THREADS), 32, "parallel downloads"),
        ("--rate", _rate, 10.0, "requests per second and host; 0: no limit"),
        ("--timeout", number(0.001, 86_400), 10.0, "seconds without data that end an attempt"),
        (
            "--row-timeout",
            number(0.001, 86_400),
            60.0,
            "time limit of a row in seconds, not counting waits for --rate",
        ),
        ("--attempts", whole(1), 3, "attempts per address"),
    ):
        add_option(group, name, kind, default, text)
    group.add_argument("--refetch", action="store_true", help="retry failed rows")
    group.add_argument(
        "--allow-private", action="store_true", help="fetch from private addresses as well"
    )


def _rate(text: str) -> float:
    """Requests a second; fewer than one in a quarter of an hour would never end."""
    rate = number()(text)
    if 0 < rate < _MIN_RATE:
        raise argparse.ArgumentTypeError(
            f"{text} is too small: use at least {_MIN_RATE:g}, or 0 for no limit"
        )
    return rate


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("run")
    add_option(group, "--endpoint", str, "", "S3 endpoint; empty: AWS_ENDPOINT_URL, else AWS")
    add_option(
        group,
        "--workers",
        whole(1, MAX_THREADS),
        os.cpu_count() or 1,
        "processes, or parallel Ray tasks",
    )
    group.add_argument("--ray", action="store_true", help="run on the cluster of RAY_ADDRESS")
    group.add_argument("--overwrite", action="store_true", help="replace a corpus of another plan")
    group.add_argument("--json", action="store_true", help="a JSON summary on standard output")


def _shard(args: argparse.Namespace) -> int:
    from gear_data_prep.corpus_tools.duplicates import warn_of_shared
    from gear_data_prep.sharding.destination import prepare_destination
    from gear_data_prep.sharding.pipeline import check_missing, make_corpus
    from gear_data_prep.sharding.plan import hash_plan
    from gear_data_prep.sources import make_spec, open_source
    from gear_dist.data.corpus_summary import (
        classes_without_images,
        read_contents,
        warn_of_empty_classes,
    )
    from gear_dist.data.manifest import SPLITS
    from gear_dist.storage.open import open_storage

    start = time.monotonic()
    parse_address(args.destination, "DESTINATION")
    notes: list[str] = []
    spec = make_spec(
        args.source, args.kind, _source_options(args), args.endpoint, tell=notes.append
    )
    origins = spec.kind in _KINDS_WITH_ORIGINS
    spec = spec._replace(options=spec.options._replace(origins=origins))
    settings = _corpus_settings(args, spec.kind)
    _check_places(spec.address, args.destination, args.endpoint)
    summary: dict[str, Any] = {"source": spec.address, "kind": spec.kind, "splits": {}}
    if spec.kind == "urls":
        fetched = args.fetched or join_address(args.destination, "fetched", "DESTINATION")
        address = open_storage(fetched, args.endpoint).address
        spec = spec._replace(options=spec.options._replace(fetched=address))
        summary["fetch"] = _fetch(args, spec)
    source = open_source(spec)
    _check_told(source, settings.plan.filters)
    summary["source"] = source.address
    notes += source.notes
    if args.validation_share and "validation" not in source.splits:
        notes.append(
            f"no validation split: {source.num_samples:,} samples are too few to hold out a share: "
            "they are one block, which a smaller --block-samples may divide"
        )
    summary["notes"] = notes
    for note in () if args.json else notes:
        print(f"shard: {note}", flush=True)
    check_missing(source, args.max_bad_share)
    # Before anything is removed: OLD of --without-duplicates-of may be the destination.
    dropped = _find_dropped(args, source)
    places = {
        split: open_storage(join_address(args.destination, split, "DESTINATION"), args.endpoint)
        for split in SPLITS
    }
    hashes = {
        split: hash_plan(listing, source.classes, settings.plan, dropped.get(split, {}))
        for split, listing in source.splits.items()
    }
    prepare_destination(places, hashes, overwrite=args.overwrite)
    for split in source.splits:
        storage = places[split]
        result = make_corpus(
            storage, source, split, settings, spec=spec, dropped=dropped.get(split)
        )
        contents = read_contents(storage, result.info)
        # Validation is too small to have all of them.
        empty = classes_without_images(storage, contents) if split == "train" else []
        empty = warn_of_empty_classes(contents.classes, empty)
        summary["splits"][split] = _summarise(storage.address, result, contents, empty)
        if not args.json:
            print(_tell(split, summary["splits"][split], contents), flush=True)
    lines = [_unknown_to_train(summary["splits"])]
    if set(SPLITS) <= source.splits.keys():
        lines.append(warn_of_shared(*(places[split] for split in SPLITS)))
    if warnings := [line for line in lines if line]:
        summary["warnings"] = warnings
    for line in () if args.json else warnings:
        print(f"WARNING: shard: {line}", flush=True)
    summary["seconds"] = round(time.monotonic() - start, 3)
    if args.json:
        print(json.dumps(summary, indent=1))
    return 0


def _check_places(source: str, destination: str, endpoint: str) -> None:
    """Refuse what would overwrite the source, be read as a part of it, or lie in a corpus.

    Raises:
        ConfigError: names both places.
    """
    from gear_dist.data.manifest import DATASET_KEY
    from gear_dist.storage.addresses import join_address, parse_address
    from gear_dist.storage.open import open_storage, overlap

    if parse_address(destination, "DESTINATION").path.strip("/") == "" and "s3:" not in destination:
        raise ConfigError(
            f"DESTINATION {destination}: is the root of the file system: name a folder"
        )
    for name in ("train", "validation"):
        place = open_storage(join_address(destination, name, "DESTINATION"), endpoint)
        if overlap(open_storage(source, endpoint), place):
            raise ConfigError(
                f"DESTINATION {destination}: {place.address} and SOURCE {source} are "
                "nested: shards would overwrite their own source or become part of it; give "
                "shards a place of their own"
            )
    if open_storage(destination, endpoint).exists(DATASET_KEY):
        raise ConfigError(
            f"DESTINATION {destination}: is one split of a corpus, and shards would lie inside it: "
            "give the folder above it, or another place"
        )


def _find_dropped(args: argparse.Namespace, source: Any) -> dict[str, Any]:
    """Duplicates of a former corpus by split; of images in both splits those in `train`."""
    from gear_data_prep.corpus_tools.duplicates import find_dropped
    from gear_dist.storage.open import open_storage

    option = "--without-duplicates-of"
    if not args.without_duplicates_of:
        return {}
    former = {
        name: open_storage(join_address(args.without_duplicates_of, name, option), args.endpoint)
        for name in source.splits
    }
    held_out = {"train": former.get("validation")}
    return {
        split: find_dropped(former[split], source, split, held_out=held_out.get(split))
        for split in source.splits
    }


def _summarise(
    address: str, result: Any, contents: Any, empty_classes: list[str]
) -> dict[str, Any]:
    from gear_dist.data.corpus_summary import SHOWN_CLASSES

    info, seconds = result.info, max(result.seconds, 1e-6)
    return {
        "address": address,
        "samples": info.num_samples,
        "shards": info.num_shards,
        "classes": len(info.classes),
        "first_classes": list(info.classes[:SHOWN_CLASSES]),
        "without_class": contents.num_without_class,
        "with_caption": contents.num_with_caption,
        "warnings": _surprises(contents) + empty_classes,
        "bytes": result.num_bytes,
        "bad": result.num_bad,
        "skipped": result.num_skipped,
        "odd": result.odd,
        "licenses": info.licenses,
        "subsets": info.subsets,
        "caption_types": info.caption_types,
        "reused": result.reused,
        "seconds": round(result.seconds, 3),
        "images_per_second": 0 if result.reused else round(info.num_samples / seconds, 1),
        "megabytes_per_second": 0 if result.reused else round(result.num_bytes / seconds / 1e6, 1),
    }


def _unknown_to_train(splits: dict[str, Any]) -> str:
    """A warning where numbers of classes come up in validation alone."""
    known = splits.get("train", {}).get("classes", 0)
    found = splits.get("validation", {}).get("classes", 0)
    if not 0 < known < found:
        return ""
    return (
        f"validation has {found:,} classes and train {known:,}: those from {known} on were never "
        "trained; see --class-column, or shard the splits from one numbering"
    )


def _surprises(contents: Any) -> list[str]:
    """What nobody means, with the option that mends it."""
    found = []
    missing = contents.num_without_class
    if contents.classes and missing:
        found.append(
            f"{missing:,} of {contents.num_samples:,} images have no class, which a generator "
            "that is trained on classes needs: label them, or leave them out with "
            "--policy no-class=skip"
        )
    if not contents.classes and not contents.num_with_caption:
        found.append(
            "no image has a class or a caption, so that only a tokenizer trains on this corpus: "
            "see --class-column, --caption-column, --labels, or use folders of classes"
        )
    if 0 < contents.num_with_caption < contents.num_samples:
        found.append(
            f"{contents.num_without_caption:,} of {contents.num_samples:,} images have no caption: "
            "--policy no-caption=skip leaves them out"
        )
    return found


def _tell(split: str, node: dict[str, Any], contents: Any) -> str:
    counts = f"{contents.describe()}; {node['shards']:,} shards"
    out = f", {node['bad']:,} bad ones left out" if node["bad"] else ""
    out += f", {node['skipped']:,} skipped" if node["skipped"] else ""
    out += "".join(f", {count:,} {kind}" for kind, count in node["odd"].items())
    speed = f"{node['images_per_second']:,.0f} images/s, {node['megabytes_per_second']:,.0f} MB/s"
    how = "finished before, reused" if node["reused"] else f"{node['seconds']:.1f} s, {speed}"
    lines = [f"shard {split}: {counts}{out}: {node['address']} ({how})"]
    return "\n".join(lines + [f"WARNING: shard {split}: {line}" for line in node["warnings"]])


def _fetch(args: argparse.Namespace, spec: Any) -> dict[str, Any]:
    """Fetch a table of URLs; what the summary tells of it."""
    from gear_data_prep.samples import common_reasons
    from gear_data_prep.sources.fetch import FetchLimits
    from gear_data_prep.sources.fetch_table import fetch_table

    limits = FetchLimits(
        max_bytes=parse_bytes("--max-bytes", args.max_bytes),
        timeout_s=args.timeout,
        total_s=args.row_timeout,
        attempts=args.attempts,
        rate=args.rate,
        private=args.allow_private,
    )
    lines: list[str] = []

    def tell(line: str) -> None:
        lines.append(line)
        if not args.json:
            print(f"fetch: {line}", flush=True)

    result = fetch_table(
        spec.address,
        spec.options,
        args.endpoint,
        limits=limits,
        connections=args.connections,
        again=args.refetch,
        max_bad_share=args.max_bad_share,
        tell=tell,
    )
    counts = f"{result.num_fetched:,} of {result.num_rows:,} rows have an image"
    errors = f"; {common_reasons(result.errors)}" if result.errors else ""
    tell(f"{counts} ({result.num_reused:,} already fetched or rejected){errors}")
    return {**result._asdict(), "lines": lines}


def _source_options(args: argparse.Namespace) -> Any:
    from gear_data_prep.sources.files import SourceOptions, read_lines

    return SourceOptions(
        validation_share=args.validation_share,
        block_samples=args.block_samples,
        classes=tuple(read_lines(args.classes)) if args.classes else (),
        labels=str(local_path(args.labels, "--labels").absolute()) if args.labels else "",
        image_column=args.image_column,
        caption_column=args.caption_column,
        class_column=args.class_column,
        url_column=args.url_column,
        fetched=args.fetched,
    )


def _filters(args: argparse.Namespace, kind: str) -> Any:
    """The filters; ConfigError where the source tells nothing that one asks for."""
    from gear_dist.data.sample_filters import SampleFilters

    filters = SampleFilters(args.subsets, args.licenses, args.caption_types, args.min_side)
    asked = [name for name in ("subsets", "licenses", "caption_types") if getattr(filters, name)]
    if asked and kind not in _KINDS_WITH_ORIGINS:
        option = f"--{asked[0].replace('_', '-')}"
        raise ConfigError(
            f"{option} {','.join(getattr(filters, asked[0]))}: a source of kind {kind} does not "
            f"tell them, only {' and '.join(_KINDS_WITH_ORIGINS)} do: leave {option} out"
        )
    return filters


def _check_told(source: Any, filters: Any) -> None:
    """ConfigError where a table has no column of what a filter asks for."""
    for name in source.untold:
        if wanted := getattr(filters, name):
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(
                f"{option} {','.join(wanted)}: {source.address} has no column that tells them "
                f"(split, license, caption_type): leave {option} out"
            )


def _corpus_settings(args: argparse.Namespace, kind: str) -> Any:
    from gear_data_prep.images.checks import ImageSettings
    from gear_data_prep.images.jpeg_codes import can_read_codes
    from gear_data_prep.images.resize import ResizeSettings
    from gear_data_prep.sharding.pipeline import CorpusSettings
    from gear_data_prep.sharding.plan import PlanSettings

    read_codes = args.check == "strict" and can_read_codes()
    if args.check == "strict" and not read_codes and not args.json:
        print("shard: no C compiler (gcc or clang): fewer corrupt JPEGs are detected", flush=True)
    image = ImageSettings(
        args.check,
        args.max_pixels,
        parse_bytes("--max-bytes", args.max_bytes),
        parse_policies(args.policy),
        read_codes,
        hex_colour(args.background),
    )
    resize = ResizeSettings(
        args.short_side, args.filter, args.quality, args.subsampling, args.keep_original
    )
    shard_bytes = parse_bytes("--shard-bytes", args.shard_bytes)
    filters = _filters(args, kind)
    origins = kind in _KINDS_WITH_ORIGINS
    plan = PlanSettings(args.shard_samples, shard_bytes, args.seed, image, resize, origins, filters)
    return CorpusSettings(plan, args.max_bad_share, args.workers, args.ray)


def parse_bytes(option: str, text: str) -> int:
    """A number of bytes, with K, M or G; ConfigError for anything else."""
    unit = _UNITS.get(text[-1:].upper(), 1)
    number = text[:-1] if unit > 1 else text
    is_number = number.isascii() and number.isdigit() and len(number) <= _MAX_DIGITS
    if not is_number or int(number) == 0:
        shown = text if len(text) <= 40 else f"{text[:40]}..."
        raise ConfigError(f"{option} {shown}: use a number above 0 with K, M or G, such as 256M")
    return int(number) * unit

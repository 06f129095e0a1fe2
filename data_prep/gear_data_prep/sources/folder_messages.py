"""What is said of the files of a tree that become no samples."""

from collections import Counter
from collections.abc import Iterable

from gear_dist.data.tar_samples import IMAGE_SUFFIXES
from gear_dist.errors import DataError

_UNREAD = {
    *("heic", "heif", "hif", "avif", "jxl", "jp2", "j2k", "svg", "psd", "ico", "tga", "exr", "hdr"),
    *("ppm", "pgm", "jpe", "jif", "raw", "dng", "cr2", "cr3", "nef", "arw", "orf", "rw2"),
}
"""Images of formats that are not read."""
_TABLES = ("csv", "tsv", "jsonl", "json", "parquet", "xlsx")
_SHOWN = 5


def note_ignored(ignored: Iterable[str]) -> tuple[str, ...]:
    """A note of the files in class folders that are no part of a sample, by suffix."""
    counts: Counter[str] = Counter()
    first: dict[str, str] = {}
    for path in ignored:
        suffix = _suffix(path)
        counts[suffix] += 1
        first[suffix] = min(path, first.get(suffix, path))
    if not counts:
        return ()
    shown = [
        f"{count:,} {f'.{suffix}' if suffix else 'without a suffix'} (such as {first[suffix]})"
        for suffix, count in counts.most_common(_SHOWN)
    ]
    others = counts.total() - sum(count for _, count in counts.most_common(_SHOWN))
    kinds = ", ".join([*shown, *([f"{others:,} others"] if others else [])])
    if unread := sorted(counts.keys() & _UNREAD):
        names = ", ".join(f".{suffix}" for suffix in unread)
        return (
            f"WARNING: {counts.total():,} files are left out: {kinds}; {names}: images of a format "
            "that is not read: convert them to JPEG or PNG",
        )
    return (f"{counts.total():,} files are no images: left out: {kinds}",)


def no_classes(address: str, paths: Iterable[str]) -> DataError:
    """The error for a tree without images in class folders: what is there, and what to do."""
    paths = sorted(paths)
    expected = f"expected CLASS/NAME.jpg below it (or {', '.join(IMAGE_SUFFIXES)})"
    flat = [path for path in paths if _suffix(path) in IMAGE_SUFFIXES]
    if not flat:
        notes = "; ".join(note_ignored(paths)).removeprefix("WARNING: ")
        found = f" ({notes})" if notes else ""
        return DataError(
            f"{address}: no images in class folders: {expected}{found}; other kinds of source are "
            "chosen by --kind"
        )
    folder = flat[0].rpartition("/")[0]
    stems = {path.rpartition(".")[0] for path in flat}
    tables = [
        path
        for path in paths
        if path.rpartition("/")[0] == folder
        and _suffix(path) in _TABLES
        and path.rpartition(".")[0] not in stems
    ]
    beside = f"; {', '.join(tables[:_SHOWN])} beside them is not read" if tables else ""
    return DataError(
        f"{address}: no images in class folders: {expected}; outside of them: {len(flat):,}, such "
        f"as {flat[0]}{beside}: move each into a folder named after its class, or all into one "
        "folder with the caption of each in a NAME.txt beside it, or give a parquet file with the "
        "images as SOURCE; other kinds of source are chosen by --kind"
    )


def _suffix(path: str) -> str:
    name = path.rpartition("/")[2]
    return name.rpartition(".")[2].lower() if "." in name else ""

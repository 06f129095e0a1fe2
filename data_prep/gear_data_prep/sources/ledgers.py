"""The ledgers of a fetched table: the recorded outcome of each URL, across chunks."""

import functools
import hashlib
import json
import re
from collections.abc import Iterable
from typing import Any

import numpy as np
from urllib3.exceptions import LocationParseError
from urllib3.util import parse_url

from gear_dist.errors import DataError
from gear_dist.storage.base import Storage

_PREFIX = "ledger/"
_KEPT_LEDGERS = 16

Line = dict[str, Any]
"""`url`, and either `sha256` and `bytes` of the image, or `error`."""


class Ledgers:
    """Finds lines by address: rows move from chunk to chunk when a table is edited."""

    def __init__(self, target: Storage) -> None:
        self._target = target
        self._load = functools.lru_cache(_KEPT_LEDGERS)(self._load_lines)

    def of_chunk(self, chunk: int) -> dict[str, Line]:
        """Lines of a chunk's ledger by address; empty: it has none."""
        if not self._target.exists(ledger_key(chunk)):
            return {}
        return dict(self._load_lines(chunk))

    def find(self, urls: Iterable[str]) -> dict[str, Line]:
        """Lines of addresses in the ledgers that were there when this was asked first."""
        hashes, chunks = self._index
        places: set[tuple[int, str]] = set()
        for url in urls:
            first, end = (np.searchsorted(hashes, _hash(url), side) for side in ("left", "right"))
            places.update((int(chunk), url) for chunk in chunks[first:end])
        found: dict[str, Line] = {}
        for chunk, url in sorted(places):
            line = self._load(chunk).get(url)
            if line and "sha256" not in found.get(url, {}):
                found[url] = line
        return found

    @functools.cached_property
    def _index(self) -> tuple[np.ndarray, np.ndarray]:
        """Hashes of all addresses in their order, and the chunks that know them: 12 bytes each."""
        names = [item.key.removeprefix(_PREFIX) for item in self._target.list(_PREFIX)]
        hashes, chunks = [np.zeros(0, np.uint64)], [np.zeros(0, np.int32)]
        for chunk in sorted(int(n[:-5]) for n in names if re.fullmatch(r"[0-9]+\.json", n)):
            part = np.array([_hash(url) for url in self._load_lines(chunk)], np.uint64)
            hashes.append(part)
            chunks.append(np.full(len(part), chunk, np.int32))
        joined = np.concatenate(hashes)
        order = np.argsort(joined, kind="stable")
        return joined[order], np.concatenate(chunks)[order]

    def _load_lines(self, chunk: int) -> dict[str, Line]:
        """By address, an image before an error."""
        lines: dict[str, Line] = {}
        for line in load_rows(self._target, ledger_key(chunk)):
            url = shown_url(line["url"])
            if "sha256" not in lines.get(url, {}):
                kept = [name for name in ("sha256", "bytes", "error") if name in line]
                lines[url] = {"url": url} | {name: line[name] for name in kept}
        return lines


def _hash(url: str) -> np.uint64:
    data = url.encode(errors="surrogatepass")
    return np.uint64(int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big"))


def ledger_key(chunk: int) -> str:
    """Where the fate of a chunk of rows is written."""
    return f"ledger/{chunk:06d}.json"


def load_rows(target: Storage, key: str) -> list[dict[str, Any]]:
    """The rows of a ledger or joined file; DataError where it is damaged."""
    try:
        rows = json.loads(target.read(key))["rows"]
        assert all(isinstance(row["url"], str) for row in rows)
        return rows
    except (ValueError, KeyError, TypeError, AssertionError):
        raise DataError(f"{target.address}/{key}: damaged: delete it and fetch again") from None


def shown_url(url: str) -> str:
    """An address as files and messages have it: without a user name and password."""
    if "@" not in url:
        return url
    try:
        parts = parse_url(url)
        if parts.scheme in ("http", "https") and parts.auth is None:
            return url
    except LocationParseError:
        pass
    return re.sub(r"^([a-zA-Z][\w+.-]*:/*)?.*@", r"\1***@", url, flags=re.DOTALL)

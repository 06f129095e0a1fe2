"""A manifest whose checksum is right and whose values are not, as others might leave it."""

import io
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from gear_data_prep.__main__ import main as data_prep
from gear_dist.data.manifest import (
    DATASET_KEY,
    SHARDS_KEY,
    DatasetInfo,
    dump_info,
    dump_table,
    load_manifest,
)
from gear_dist.errors import DataError
from gear_dist.storage.local import FileStorage
from image_files import encode
from refusals import refused


@pytest.fixture
def corpus(tmp_path: Path) -> FileStorage:
    """Two images in two shards."""
    for number in range(2):
        path = tmp_path / f"tree/a/{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(number))
    words = ["shard", str(tmp_path / "tree"), str(tmp_path / "out")]
    assert data_prep([*words, "--validation-share=0", "--shard-samples=1", "--workers=1"]) == 0
    storage = FileStorage(tmp_path / "out/train")
    assert load_manifest(storage).info.num_shards == 2
    return storage


def write_info(storage: FileStorage, **changes: Any) -> None:
    """Replace values of dataset.json, and its checksum with them."""
    node = json.loads(storage.read(DATASET_KEY))
    del node["xxh3"]
    storage.write(DATASET_KEY, dump_info(DatasetInfo(**{**node, **changes})))


@pytest.mark.parametrize(
    "change",
    [
        {"num_samples": "2"},
        {"num_shards": None},
        {"classes": [1]},
        {"classes": "a"},
        {"attributes": []},
        {"attributes": {"x": None}},
        {"settings": []},
        {"checksums": []},
        {"checksums": {SHARDS_KEY: 3}},
        {"plan_hash": 10**30},
    ],
)
def test_values_of_another_type_are_damage(corpus: FileStorage, change: dict[str, Any]) -> None:
    write_info(corpus, **change)
    with refused(DataError, DATASET_KEY, *change, "gear-dist repair"):
        load_manifest(corpus)


def test_a_schema_version_of_another_type_is_damage(corpus: FileStorage) -> None:
    write_info(corpus, schema_version=[2])
    with refused(DataError, DATASET_KEY, "version [2]", "gear-dist repair"):
        load_manifest(corpus)


def test_empty_cells_are_damage(corpus: FileStorage) -> None:
    import pyarrow as pa
    import xxhash

    table = pq.read_table(io.BytesIO(corpus.read(SHARDS_KEY)))
    column = pa.array([None, "b.tar"], pa.string())
    data = dump_table(table.set_column(table.column_names.index("name"), "name", column))
    corpus.write(SHARDS_KEY, data)
    checksums = json.loads(corpus.read(DATASET_KEY))["checksums"]
    write_info(corpus, checksums={**checksums, SHARDS_KEY: xxhash.xxh3_128_hexdigest(data)})
    with refused(DataError, SHARDS_KEY, "empty cells", "gear-dist repair"):
        load_manifest(corpus)


def test_links_to_nothing_are_no_objects(tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(b"1")
    (tmp_path / "dangling").symlink_to("nowhere")
    assert [item.key for item in FileStorage(tmp_path).list()] == ["there"]


def test_links_in_a_circle_are_told(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with refused(DataError, tmp_path / "loop"):
        list(FileStorage(tmp_path).list())

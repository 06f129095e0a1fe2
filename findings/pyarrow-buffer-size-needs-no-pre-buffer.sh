#!/bin/bash
# pyarrow 26.0.1: ParquetFile(buffer_size=1 MiB).iter_batches(16) asks for a row group's whole column
# in one read, because pre_buffer is on by default and wins; only pre_buffer=False streams it.
#
# A row group of pictures as `pq.write_table` makes them (up to a million rows) is gigabytes: reading a
# few rows at a time holds all of it in memory, and from a Python file without a buffer (where a read
# gives 2 GiB less 4 KiB at most) it fails with "File too short" from 2 GiB on.
#
# A good guess: buffer_size ("if positive, perform read buffering when deserializing individual column
# chunks") bounds the reads, and iter_batches the memory.
# Seen on 2026-11-27, Python 3.11, one row group of 96 MiB:
#   largest read, buffer_size alone      : 96.6 MiB
#   largest read, with pre_buffer=False  : 1.0 MiB
# Ends with 1 where that changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --no-deps --target "$folder/lib" pyarrow==26.0.1
cd "$folder"
PYTHONPATH="$folder/lib" python3 - <<'PY'
import io
import os
import sys

import pyarrow as pa
import pyarrow.parquet as pq

MIB = 1 << 20
table = pa.table({"image": [os.urandom(MIB // 1024) for _ in range(96 * 1024)]})
pq.write_table(table, "x.parquet", compression="none", use_dictionary=False)


class Counting(io.FileIO):
    largest = 0

    def read(self, size=-1):
        self.largest = max(self.largest, size)
        return super().read(size)


def largest_read(**options):
    with Counting("x.parquet") as stream:
        file = pq.ParquetFile(stream, buffer_size=MIB, **options)
        assert file.metadata.num_row_groups == 1
        rows = sum(batch.num_rows for batch in file.iter_batches(16, use_threads=False))
        assert rows == 96 * 1024
        return stream.largest / MIB


alone, without = largest_read(), largest_read(pre_buffer=False)
print(f"largest read, buffer_size alone      : {alone:.1f} MiB")
print(f"largest read, with pre_buffer=False  : {without:.1f} MiB")
if alone < 90 or without > 2:
    sys.exit("the behaviour has changed")
PY

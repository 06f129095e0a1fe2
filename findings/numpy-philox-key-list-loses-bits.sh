#!/bin/bash
# numpy 2.4.6: numpy.random.Philox(key=[a, b]) rounds both words to 53 bits where one of them is 2^63 or more,
# without a warning: the list becomes float64 before it becomes the key. So different keys give the same
# stream. The same number as one int, or as a uint64 array, is taken exactly. From 2^64 - 1024 on the word
# becomes 0, with a warning of an invalid cast.
#
# Whoever keys a counter-based generator by hashes (half of all 64-bit numbers) gives some samples the
# noise of others.
#
# A good guess: two Python ints below 2^64 are the two words of the key, as the documentation has it, or raise.
# Seen on 2026-11-28, Python 3.11:
#   key=[2^63 + 1, 5]: words 2^63 and 5; the first numbers are those of key=[2^63 + 9, 5]
#   key=(2^63 + 1) + (5 << 64), one int: words 2^63 + 1 and 5
# Ends with 1 where that changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check numpy==2.4.6
"$folder/venv/bin/python" -W error - <<'PY'
import sys

import numpy as np


def words(key):
    return [int(word) for word in np.random.Philox(key=key).state["state"]["key"]]


def first(key):
    return np.random.Philox(key=key).random_raw(4).tolist()


a, b = [2**63 + 1, 5], [2**63 + 9, 5]
same = first(a) == first(b)
print(f"two words: {words(a)}; the stream of another key: {same}")
exact = words(a[0] + (a[1] << 64))
print(f"one int:   {exact}")
arrays = first(np.array(a, np.uint64)) == first(np.array(b, np.uint64))
print(f"uint64 arrays of the two keys give one stream: {arrays}")
sys.exit(not (same and words(a) == [2**63, 5] and exact == a and not arrays))
PY

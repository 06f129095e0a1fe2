#!/bin/bash
# triton 3.9.0 with TRITON_INTERPRET=1: bfloat16 is kept as its 16 bits. The product of two bfloat16
# tensors multiplies those bits as whole numbers (1.5 x 2 is 0), also inside tl.dot, and a store of
# float32 to bfloat16 drops the lower bits, where compiled kernels and torch round to nearest.
#
# Tests of bfloat16 kernels without a GPU so either fail on right kernels or, with float16 in its place or
# tolerances of a whole unit, pass wrong ones.
#
# A good guess: the interpreter is numpy behind the same semantics, at most slow.
# Seen on 2026-11-28, Python 3.11, torch 2.13.0 (CPU), numpy 2.4.6:
#   products: [0.0, 0.0, 0.0, 0.0] for [3.0, 4.0, 6.0, -8.0]
#   stored: [1.0, 1.0, -1.0] for [1.0078125, 1.0078125, -1.0078125]
# Ends with 1 where that changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    torch==2.13.0 triton==3.9.0 numpy==2.4.6
# The decorator reads the source of its function, so that needs a file.
cat > "$folder/look.py" <<'PY'
import sys

import torch
import triton
import triton.language as tl


@triton.jit
def multiply_and_round(left, right, product, exact, rounded, size: tl.constexpr):
    places = tl.arange(0, size)
    both = tl.load(left + places) * tl.load(right + places)
    tl.store(product + places, both.to(tl.float32))
    tl.store(rounded + places, tl.load(exact + places))


left = torch.tensor([1.5, 2.0, 3.0, -4.0], dtype=torch.bfloat16)
right = torch.full((4,), 2.0, dtype=torch.bfloat16)
exact = torch.tensor([1 + 3 / 512, 1 + 7 / 1024, -(1 + 3 / 512), 1.0])
product, rounded = torch.empty(4), torch.empty(4, dtype=torch.bfloat16)
multiply_and_round[(1,)](left, right, product, exact, rounded, 4)
right_product, right_rounded = left.float() * right.float(), exact.to(torch.bfloat16)
print("products:", product.tolist(), "for", right_product.tolist())
print("stored:", rounded.tolist()[:3], "for", right_rounded.tolist()[:3])
as_seen = (
    product.tolist() == [0.0] * 4
    and rounded.tolist() == [1.0, 1.0, -1.0, 1.0]
    and right_rounded.tolist() == [1.0078125, 1.0078125, -1.0078125, 1.0]
)
sys.exit(not as_seen)
PY
TRITON_INTERPRET=1 "$folder/venv/bin/python" "$folder/look.py"

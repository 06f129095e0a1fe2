#!/bin/bash
# liger-kernel 0.8.5: its fused linear cross entropy gives the head's weight no gradient where the hidden
# states take none: weight.grad stays None, the loss has a grad_fn, and backward raises nothing. With
# hidden states that require a gradient, the weight's is right to the last bits.
#
# Whoever trains a head alone, on features of a frozen network, trains nothing.
#
# A good guess: each input that requires a gradient gets one, as with any function of torch.
# Seen on 2026-11-28, Python 3.11, torch 2.13.0 (CPU), triton 3.9.0 with TRITON_INTERPRET=1:
#   hidden takes a gradient: the weight's differs from torch's by less than 1e-6
#   hidden takes none: the weight's is None; torch's has entries up to 0.5
# Ends with 1 where that changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    torch==2.13.0 triton==3.9.0 numpy==2.4.6 packaging==26.3 liger-kernel==0.8.5
TRITON_INTERPRET=1 "$folder/venv/bin/python" - <<'PY'
import sys

import torch
from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction
from torch.nn.functional import cross_entropy

torch.manual_seed(0)


def weight_gradients(*, hidden_takes_one):
    hidden = torch.randn(6, 8, requires_grad=hidden_takes_one)
    weight = torch.randn(11, 8, requires_grad=True)
    targets = torch.randint(0, 11, (6,))
    [expected] = torch.autograd.grad(cross_entropy(hidden @ weight.T, targets), [weight])
    found = LigerFusedLinearCrossEntropyFunction.apply(hidden, weight, targets)
    loss = found[0] if isinstance(found, tuple) else found
    assert loss.requires_grad
    loss.backward()
    return weight.grad, expected


both, expected = weight_gradients(hidden_takes_one=True)
error = float((both - expected).abs().max())
print(f"hidden takes a gradient: the weight's differs from torch's by {error:.0e}")
alone, expected = weight_gradients(hidden_takes_one=False)
size = float(expected.abs().max())
print(f"hidden takes none: the weight's is {alone}; torch's has entries up to {size:.1f}")
sys.exit(not (error < 1e-6 and alone is None and size > 0.1))
PY

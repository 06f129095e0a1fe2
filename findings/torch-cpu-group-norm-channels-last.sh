#!/bin/bash
# torch 2.13.0 (CPU): group norm of a channels-last float32 input takes the variance as the mean of the
# squares minus the square of the mean, in float32. Where a group's mean is large beside its deviation the
# result is wrong without a word: 0.002 off at mean 5 and deviation 0.1, 0.26 off at 50, more than 100 off
# at 500, where results lie within 5 of zero. The same numbers laid out contiguously are right to 3e-4.
#
# The memory format of an input comes from whatever convolution was before, so a network is as exact as
# its layers' layouts.
#
# A good guess: a memory format changes speed and the order of sums, and so the last bits.
# Seen on 2026-11-28, Python 3.11, x86-64 with AVX-512, and with ATEN_CPU_CAPABILITY=default alike:
#   mean 0: contiguous 5e-07, channels-last 5e-07
#   mean 5: contiguous 5e-06, channels-last 0.003
#   mean 50: contiguous 4e-05, channels-last 0.3
#   mean 500: contiguous 0.0003, channels-last 1e+02
# Ends with 1 where that changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import sys

import torch
from torch.nn.functional import group_norm

torch.manual_seed(0)
torch.set_num_threads(1)
worst = {}
for mean, deviation in ((0, 1), (5, 0.1), (50, 0.1), (500, 0.1)):
    x = torch.randn(2, 32, 16, 16) * deviation + mean
    exact = group_norm(x.double(), 8)
    layouts = (x, x.contiguous(memory_format=torch.channels_last))
    worst[mean] = [float((group_norm(y, 8).double() - exact).abs().max()) for y in layouts]
    print(f"mean {mean}: contiguous {worst[mean][0]:.0e}, channels-last {worst[mean][1]:.0e}")
as_seen = (
    all(contiguous < 1e-3 for contiguous, _ in worst.values())
    and worst[0][1] < 1e-5
    and 1e-3 < worst[5][1] < 0.1 < worst[50][1] < 1
    and worst[500][1] > 10
)
sys.exit(not as_seen)
PY

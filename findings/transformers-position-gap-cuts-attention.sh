#!/bin/bash
# transformers 5.23.0 (Qwen3, sdpa): position_ids that jump forward, such as 0 1 2 3 10 11 12 13, cut the
# sequence there when no attention_mask is given: tokens behind the gap do not attend to those before it. With a
# mask of ones, which says nothing else, they do.
#
# Whoever leaves room between a prompt and what follows (image slots, an edited cache) by moving positions loses
# the prompt, without a word.
#
# A good guess: positions only turn queries and keys; a new text begins where they start over at 0.
# Seen on 2026-11-28, Python 3.11, torch 2.13.0 (CPU), random weights; change of the last token's output as the
# first token changes:
#   positions without a gap 0.6; with a gap 0.0; with the gap and a mask of ones 0.4
# Ends with 1 where that changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    torch==2.13.0 transformers==5.23.0 numpy==2.4.6
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PY'
import sys

import torch
import transformers

torch.manual_seed(0)
config = transformers.Qwen3Config(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    head_dim=16,
    attn_implementation="sdpa",
)
model = transformers.Qwen3Model(config).eval()


@torch.no_grad()
def reach(positions, mask=None):
    """How much the last token's output moves with the first token."""
    outputs = []
    for first in (1, 50):
        ids = torch.tensor([[first, 2, 3, 4, 5, 6, 7, 8]])
        found = model(
            input_ids=ids,
            position_ids=torch.tensor([positions]),
            attention_mask=mask,
            use_cache=False,
        )
        outputs.append(found.last_hidden_state[0, -1])
    return float((outputs[0] - outputs[1]).abs().max())


straight = reach(list(range(8)))
gap = [0, 1, 2, 3, 10, 11, 12, 13]
cut, masked = reach(gap), reach(gap, torch.ones(1, 8, dtype=torch.long))
print(f"no gap {straight:.2f}, gap {cut:.2f}, gap with a mask of ones {masked:.2f}")
sys.exit(not (straight > 0.1 and cut == 0 and masked > 0.1))
PY

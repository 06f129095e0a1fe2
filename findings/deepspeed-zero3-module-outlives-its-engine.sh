#!/bin/bash
# deepspeed 0.19.8, ZeRO stage 3: after engine.destroy(), with every reference dropped and the garbage
# collector run, the module and its partitioned weights stay alive for the rest of the process:
# deepspeed.runtime.zero.parameter_offload appends each engine's module to the list FWD_MODULE_STACK,
# which is meant for forwards in progress, and nothing ever takes it out. After one step the module goes
# once the list is cleared; after two it stays even then, probably by hooks in autograd's nodes, which the
# collector does not look into. At stage 2 the same steps free everything.
#
# A process that builds one engine after another (stages of a training, sweeps, tests) adds up their memory.
#
# A good guess: destroy() and `del` give an engine's memory back at every stage.
# Seen on 2026-11-28, Python 3.11, torch 2.13.0 (CPU):
#   stage 2, 1 steps: freed
#   stage 2, 2 steps: freed
#   stage 3, 1 steps: alive; without the list: freed
#   stage 3, 2 steps: alive; without the list: alive
# Ends with 1 where that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check setuptools wheel
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    torch==2.13.0 numpy==2.4.6 deepspeed==0.19.8
cat > "$folder/look.py" <<'PY'
import gc
import sys
import weakref

import deepspeed
import torch
from deepspeed.runtime.zero import parameter_offload

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
deepspeed.init_distributed(dist_backend="gloo", verbose=False)


def build_and_destroy(stage, steps):
    module = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
    }
    engine, *_ = deepspeed.initialize(
        model=module, optimizer=optimizer, config=settings, dist_init_required=False
    )
    for _ in range(steps):
        engine.backward(engine(torch.ones(1, 8)).square().mean())
        engine.step()
    engine.destroy()
    return weakref.ref(module)


def is_alive(module):
    gc.collect()
    return module() is not None


seen = {}
for stage, steps in ((2, 1), (2, 2), (3, 1), (3, 2)):
    module = build_and_destroy(stage, steps)
    before = is_alive(module)
    parameter_offload.FWD_MODULE_STACK.clear()
    seen[stage, steps] = before, is_alive(module)
    words = ["alive" if alive else "freed" for alive in seen[stage, steps]]
    print(f"stage {stage}, {steps} steps:", "; without the list: ".join(words[: 1 + before]))
expected = {(2, 1): (False, False), (2, 2): (False, False), (3, 1): (True, False)}
sys.exit(seen != {**expected, (3, 2): (True, True)})
PY
env DS_ACCELERATOR=cpu DEEPSPEED_LOG_LEVEL=error RANK=0 WORLD_SIZE=1 LOCAL_RANK=0 \
    MASTER_ADDR=127.0.0.1 MASTER_PORT=29641 "$folder/venv/bin/python" "$folder/look.py" 2>/dev/null |
    grep '^stage'

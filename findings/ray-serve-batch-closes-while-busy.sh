#!/bin/bash
# ray[serve] 2.60.0, Python 3.11, Linux; 2026-11-28.
#
# @serve.batch closes a batch as soon as its batch_wait_timeout_s is over, also while the batch before it still runs
# (max_concurrent_batches=1): requests that arrive during a long batch do not join one next batch, they form as many small
# ones as there are waits between them, and these then run one after another.
# A good guess: the next batch takes all that is waiting when the model becomes free, up to max_batch_size, as the
# batchers of inference servers do; so one batch of 1 and then one of 15 here, two model runs.
# Seen: 16 requests, 30 ms apart, a batch takes 1 s, max_batch_size=16, batch_wait_timeout_s=0.01: batches of 2, 1, 1, 1, ...:
# 15 of them, 15 s.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'ray[serve]==2.60.0'
cat > "$folder/show.py" <<'PY'
import asyncio
import time

import ray
from ray import serve


@serve.deployment(max_ongoing_requests=100)
class Model:
    def __init__(self):
        self.sizes = []

    @serve.batch(max_batch_size=16, batch_wait_timeout_s=0.01)
    async def run(self, items):
        self.sizes.append(len(items))
        await asyncio.sleep(1.0)
        return items

    async def __call__(self, item):
        return await self.run(item)

    async def seen(self):
        return self.sizes


ray.init(include_dashboard=False, log_to_driver=False)
handle = serve.run(Model.bind(), route_prefix=None)
answers = []
for item in range(16):
    answers.append(handle.remote(item))
    time.sleep(0.03)
assert [answer.result() for answer in answers] == list(range(16))
sizes = handle.seen.remote().result()
print("batches of", sizes)
serve.shutdown()
assert len(sizes) > 8, "batches grow while the model is busy: this has changed"
PY
# Ray would leave a token in the home folder.
HOME=$folder RAY_USAGE_STATS_ENABLED=0 "$folder/venv/bin/python" "$folder/show.py"

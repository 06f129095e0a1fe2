#!/bin/bash
# CPython 3.11.7, concurrent.futures.ProcessPoolExecutor: where a worker dies (the out-of-memory killer) while
# submit() is starting another one, shutdown() never returns. The manager's thread ends the workers that the
# pool has at that moment, and then joins all, also the one that was added since, which waits for work.
# submit() may also raise OSError ("handle is closed") there, in place of BrokenProcessPool.
#
# A good guess: after BrokenProcessPool, leaving the `with` block ends.
# Seen on 2026-11-28, Python 3.11.7: within ten tries. 3.12.1 and 3.13.0: never in twenty.
# Ends with 1 where that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/look.py" <<'PY'
import multiprocessing
import os
import signal
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

TRIES = 40


def hangs(pause_s):
    executor = ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn"))
    first = executor.submit(time.sleep, 60)
    (worker,) = multiprocessing.active_children()
    time.sleep(0.3)
    os.kill(worker.pid, signal.SIGKILL)
    time.sleep(pause_s)
    try:
        executor.submit(time.sleep, 60)  # starts the second worker
    except (BrokenProcessPool, OSError):
        pass
    try:
        first.result()
    except BrokenProcessPool:
        pass
    ending = threading.Thread(target=executor.shutdown, daemon=True)
    ending.start()
    ending.join(5)
    stuck = ending.is_alive()
    for late in multiprocessing.active_children():
        late.kill()
    ending.join()
    return stuck


if __name__ == "__main__":
    for number in range(TRIES):
        if hangs(0.0005 * (number % 4)):
            print(f"try {number + 1}: shutdown() waits for a worker that nobody ends")
            sys.exit(0)
    print(f"{TRIES} tries: shutdown() returned each time")
    sys.exit(1)
PY
python3 "$folder/look.py"

#!/bin/bash
# ray[serve] 2.60.0, Python 3.11, Linux; 2026-11-28.
#
# Two Ray clusters of one machine may run Ray Serve on the same host and port: the second one's proxy does not fail with
# "address already in use", because Serve's HTTP proxies listen with SO_REUSEPORT. The kernel then spreads connections over
# both, and clients get answers now of one application, now of the other. Neither cluster says anything.
# A good guess: the second serve.start() or serve.run() raises, as every web server does on a port that is taken.
# Seen: both start; of 60 requests to the one port 33 are answered "first" and 27 "second".
set -euo pipefail
folder=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; wait; rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'ray[serve]==2.60.0'
cat > "$folder/serve_one.py" <<'PY'
import os
import sys
import time

import ray
from ray import serve

name, port, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]


@serve.deployment(ray_actor_options={"num_cpus": 0})
class Answer:
    def __call__(self, request):
        return name


ray.init(
    address="local", num_cpus=1, include_dashboard=False, log_to_driver=False,
    _temp_dir=os.path.join(folder, name[0]),
)
serve.start(http_options={"host": "127.0.0.1", "port": port})
serve.run(Answer.bind(), route_prefix="/")
open(os.path.join(folder, name + ".ready"), "w").close()
time.sleep(600)
PY
export HOME="$folder" RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=disabled
port=$("$folder/venv/bin/python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
for name in first second; do
    "$folder/venv/bin/python" "$folder/serve_one.py" "$name" "$port" "$folder" > "$folder/$name.log" 2>&1 &
    for _ in $(seq 120); do test -e "$folder/$name.ready" && break; sleep 1; done
    test -e "$folder/$name.ready" || { echo "$name did not start: this has changed"; tail -3 "$folder/$name.log"; exit 1; }
done
"$folder/venv/bin/python" - "$port" <<'PY'
import collections
import sys
import urllib.request

answers = collections.Counter(
    urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[1]}/").read().decode() for _ in range(60)
)
print(dict(answers))
sys.exit(set(answers) != {"first", "second"})
PY

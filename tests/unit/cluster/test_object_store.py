"""The embedded object store: one server a folder, kept credentials, no secrets on show."""

import argparse
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from gear_cluster.cli import store as store_cli
from gear_cluster.demo import object_store
from gear_cluster.demo.object_store import StoreEndpoint
from gear_dist.cli.main import main
from gear_dist.errors import DataError, StorageError
from gear_dist.storage.s3_client import make_client
from refusals import refused


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "store"
    object_store.stop(tmp_path / "store")


def client_of(store: StoreEndpoint) -> object:
    return make_client(
        store.endpoint,
        aws_access_key_id=store.access_key,
        aws_secret_access_key=store.secret_key,
    )


def run_command(*words: str) -> int:
    parser = argparse.ArgumentParser()
    store_cli.add_commands(parser.add_subparsers())
    args = parser.parse_args(["store", *words])
    return args.run(args)


def test_start_stop_start_keeps_all(folder: Path) -> None:
    assert object_store.status(folder) == ("stopped", "", 0)
    store = object_store.ensure_running(folder)
    state = object_store.status(folder)
    assert (state.state, state.endpoint) == ("running", store.endpoint)
    client = client_of(store)
    client.create_bucket(Bucket="bucket")
    client.put_object(Bucket="bucket", Key="k", Body=b"1")
    assert object_store.ensure_running(folder) == store
    assert object_store.status(folder).pid == state.pid
    assert object_store.stop(folder)
    assert object_store.status(folder).state == "stopped"
    assert not object_store.stop(folder)
    assert object_store.ensure_running(folder) == store
    assert client_of(store).get_object(Bucket="bucket", Key="k")["Body"].read() == b"1"


def test_secrets_stay_secret(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_command("start", "--folder", str(folder)) == 0
    store = object_store.load_endpoint(folder)
    assert store is not None
    shown = capfd.readouterr().out
    assert f"export AWS_ENDPOINT_URL={store.endpoint}" in shown
    everything = subprocess.run(["ps", "axww"], capture_output=True, text=True, check=True).stdout
    assert str(folder / "buckets") in everything
    log = (folder / "server.log").read_text()
    for secret in (store.secret_key, store.access_key):
        assert len(secret) >= 20
        assert not any(secret in text for text in (shown, everything, log, repr(store), f"{store}"))
    assert (folder / "credentials.json").stat().st_mode & 0o777 == 0o600
    assert run_command("env", "--folder", str(folder)) == 0
    exports = dict(
        line.removeprefix("export ").split("=", 1) for line in capfd.readouterr().out.splitlines()
    )
    assert exports == store.environment()
    assert run_command("status", "--folder", str(folder)) == 0
    assert run_command("stop", "--folder", str(folder)) == 0
    assert run_command("status", "--folder", str(folder)) != 0


def test_env_without_a_store(folder: Path) -> None:
    with refused(DataError, folder, "gear-dist store start"):
        run_command("env", "--folder", str(folder))


def test_recycled_pid_is_left_alone(folder: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        folder.mkdir()
        (folder / "server.pid").write_text(str(other.pid))
        assert not object_store.stop(folder)
        (folder / "server.pid").write_text(str(other.pid))
        store = object_store.ensure_running(folder)
        assert other.poll() is None
        assert object_store.status(folder).pid not in (0, other.pid)
        assert client_of(store).list_buckets()["Buckets"] == []
        other.communicate(b"\n")


def test_crashed_server_is_replaced(folder: Path) -> None:
    store = object_store.ensure_running(folder)
    pid = object_store.status(folder).pid
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    assert object_store.ensure_running(folder) == store
    assert object_store.status(folder).pid not in (0, pid)


def test_port_taken_by_another_program(folder: Path) -> None:
    store = object_store.ensure_running(folder)
    object_store.stop(folder)
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", int(store.endpoint.rpartition(":")[2])))
        other.listen()
        moved = object_store.ensure_running(folder)
    assert moved.endpoint != store.endpoint
    assert moved[1:] == store[1:]
    assert object_store.load_endpoint(folder) == moved


def test_one_server_for_simultaneous_starts(folder: Path) -> None:
    found: list[StoreEndpoint] = []
    threads = [
        threading.Thread(target=lambda: found.append(object_store.ensure_running(folder)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert len(set(found)) == 1
    servers = subprocess.run(["ps", "axww"], capture_output=True, text=True, check=True).stdout
    assert servers.count(str(folder / "buckets")) == 1


def test_server_that_does_not_start(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "_rclone", lambda: "/bin/false")
    with refused(StorageError, folder, "start", "no log"):
        object_store.ensure_running(folder)
    assert not (folder / "server.pid").exists()


def processes_of(folder: Path) -> list[int]:
    """Of all rclone servers, also those that no pid file names."""
    return [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if str(folder / "buckets") in (process.info["cmdline"] or ())
    ]


def test_a_server_that_does_not_answer_in_time_is_ended(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "START_SECONDS", 0.3)
    monkeypatch.setattr(object_store, "_answers", lambda *_: False)
    with refused(StorageError, folder, "start", "no answer"):
        object_store.ensure_running(folder)
    assert not processes_of(folder)
    assert not (folder / "server.pid").exists()
    monkeypatch.undo()
    object_store.ensure_running(folder)
    assert len(processes_of(folder)) == 1


def test_ctrl_c_while_it_starts_leaves_no_server(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(object_store, "_wait_for_answer", interrupt)
    folder.mkdir()
    with pytest.raises(KeyboardInterrupt):
        object_store._start(folder, object_store._load_or_create(folder))
    assert not processes_of(folder)


def test_a_server_without_a_command_line_yet_is_waited_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is for a moment while the kernel loads a program."""
    monkeypatch.setattr(object_store, "_command_line", lambda *_: "")
    object_store.ensure_running(folder)
    monkeypatch.undo()
    assert object_store.status(folder).state == "running"
    assert [object_store.status(folder).pid] == processes_of(folder)


def test_a_folder_whose_name_is_not_utf8(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/st\xe9"))
    try:
        object_store.ensure_running(folder)
        assert object_store.status(folder).pid
    finally:
        assert object_store.stop(folder)


def test_a_listing_reads_no_contents(folder: Path) -> None:
    """Tags that are hashes would take minutes for a corpus, after every start."""
    client = client_of(object_store.ensure_running(folder))
    client.create_bucket(Bucket="bucket")
    client.put_object(Bucket="bucket", Key="k", Body=b"1")
    (found,) = client.list_objects_v2(Bucket="bucket")["Contents"]
    assert found["ETag"].strip('"') == ""


def test_damaged_credentials(folder: Path) -> None:
    folder.mkdir()
    (folder / "credentials.json").write_text("{")
    with refused(DataError, folder / "credentials.json", "line 1"):
        object_store.ensure_running(folder)


@pytest.mark.parametrize(
    "endpoint", ["http://127.0.0.1:x", "foo:99999", "http://127.0.0.1:99999", 5]
)
@pytest.mark.parametrize("command", ["start", "status", "env", "stop"])
def test_damaged_credentials_are_told_in_one_line(tmp_path, capsys, endpoint, command):
    node = {"endpoint": endpoint, "access_key": "a", "secret_key": "b"}
    (tmp_path / "credentials.json").write_text(json.dumps(node))
    code = main(["store", command, "--folder", str(tmp_path)])
    assert code == (0 if command == "stop" else 3)
    assert capsys.readouterr().err.count("\n") == (code != 0)


@pytest.mark.parametrize("name", ["buckets", "server.pid"])
def test_what_lies_in_the_stores_place_is_told_in_one_line(tmp_path, name):
    if name == "buckets":
        (tmp_path / name).write_text("")
    else:
        (tmp_path / name).mkdir()
    assert main(["store", "start", "--folder", str(tmp_path)]) == 5
    assert main(["store", "stop", "--folder", str(tmp_path)]) == (5 if name == "server.pid" else 0)


def test_a_file_is_no_stores_folder(tmp_path):
    (tmp_path / "file").write_text("")
    assert main(["store", "env", "--folder", str(tmp_path / "file")]) == 3

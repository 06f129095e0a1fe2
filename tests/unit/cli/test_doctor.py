"""The doctor's verdicts on machines that are fit and on machines that are not."""

import argparse
import importlib.metadata
import json
import socket
import types

import pytest

from gear_dist.cli import doctor
from gear_dist.cli.doctor import Check
from gear_dist.errors import ConfigError, DataError

GIB = 1024**3


def run(*words):
    parser = argparse.ArgumentParser()
    doctor.add_commands(parser.add_subparsers())
    args = parser.parse_args(["doctor", *words])
    return args.run(args)


@pytest.fixture
def checks(monkeypatch):
    """Replaces the checks of the real machine."""

    def install(*found):
        monkeypatch.setattr(doctor, "run_checks", lambda **_options: iter(found))

    return install


def test_a_fit_machine_exits_0(checks, capsys):
    checks(Check("python", "ok", "3.12"), Check("disk", "warn", "9 GiB", "free space"))
    assert run() == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["ok", "python", "3.12"]
    assert "fix: free space" in lines[2]
    assert lines[-1] == "2 checks: 0 failed, 1 with a warning"


def test_a_failed_check_exits_2_with_its_fix(checks, capsys):
    checks(Check("ray", "fail", "does not import", "pip install ray"))
    assert run() == 2
    output = capsys.readouterr().out
    assert "FAIL" in output
    assert "fix: pip install ray" in output


def test_json_is_one_object(checks, capsys):
    checks(Check("python", "ok", "3.12"), Check("ray", "fail", "no", "fix it"))
    assert run("--json") == 2
    node = json.loads(capsys.readouterr().out)
    assert node["ok"] is False
    expected = {"name": "ray", "status": "fail", "detail": "no", "fix": "fix it"}
    assert node["checks"][1] == expected


def test_every_finding_that_is_not_ok_has_a_fix():
    for check in doctor.run_checks(endpoint="http://127.0.0.1:1", store="/nonexistent/corpus"):
        assert check.detail
        assert (check.status == "ok") == (check.fix == ""), check


def test_versions_are_held_against_the_requirements():
    versions = {"numpy": "1.20", "torch": "2.13.0+cpu"}

    def version(name):
        try:
            return versions[name]
        except KeyError:
            raise importlib.metadata.PackageNotFoundError(name) from None

    lines = ["numpy>=1.26,<3", "torch<2.15,>=2.11", "absent>=1", 'pytest>=8; extra == "dev"']
    found = {check.name: check for check in doctor.check_packages(lines, version)}
    assert found["numpy"].status == "fail"
    assert "1.20" in found["numpy"].detail
    assert "numpy<3,>=1.26" in found["numpy"].fix
    assert found["absent"].detail.startswith("not installed")
    assert set(found) == {"numpy", "absent", "packages"}
    assert found["packages"].detail.startswith("3 requirements")


def test_the_project_meets_its_own_requirements():
    assert [check.status for check in doctor.check_packages()] == ["ok"]


@pytest.mark.parametrize(
    ("available", "status"), [(GIB, "fail"), (4 * GIB, "warn"), (20 * GIB, "ok")]
)
def test_little_memory_is_found(monkeypatch, available, status):
    monkeypatch.setattr(doctor, "memory_bytes", lambda: (32 * GIB, available))
    assert doctor.check_machine().status == status


@pytest.mark.parametrize(
    ("check", "low", "middle", "high"),
    [
        (lambda path: doctor.check_shared_memory(path), GIB // 16, GIB, 8 * GIB),
        (lambda path: doctor.check_disk(path / "runs" / "x"), GIB, 5 * GIB, 50 * GIB),
    ],
)
def test_little_space_is_found(monkeypatch, tmp_path, check, low, middle, high):
    for free, status in ((low, "fail"), (middle, "warn"), (high, "ok")):
        usage = types.SimpleNamespace(free=free)
        monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _path, usage=usage: usage)
        assert check(tmp_path).status == status


def test_an_unwritable_place_is_found(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor.os, "access", lambda _path, _mode: False)
    assert doctor.check_disk(tmp_path).status == "fail"


def test_a_file_in_the_place_of_the_root_is_found(tmp_path):
    (tmp_path / "file").write_text("x")
    for root in (tmp_path / "file", tmp_path / "file" / "runs"):
        check = doctor.check_disk(root)
        assert check.status == "fail"
        assert str(tmp_path / "file") in check.detail
        assert "run.root" in check.fix


def test_a_low_limit_of_open_files_is_found(monkeypatch):
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda _what: (1024, 4096))
    check = doctor.check_open_files()
    assert check.status == "warn"
    assert "ulimit" in check.fix
    monkeypatch.setattr(resource, "getrlimit", lambda _what: (65536, 65536))
    assert doctor.check_open_files().status == "ok"


def test_a_package_that_does_not_import_is_found():
    check = doctor.check_import("no_such_package_here")
    assert check.status == "fail"
    assert "No module named 'no_such_package_here'" in check.detail


def test_a_package_that_kills_the_process_is_found(monkeypatch, tmp_path):
    (tmp_path / "crashing.py").write_text("import os; os.abort()")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    check = doctor.check_import("crashing")
    assert check.status == "fail"
    assert "code -6" in check.detail


def test_a_gpu_that_torch_does_not_see_is_found(monkeypatch):
    info = json.dumps({"version": "2.13.0+cpu", "cuda": None, "devices": []})
    monkeypatch.setattr(doctor, "_run_python", lambda _program: (info, ""))
    monkeypatch.setattr(doctor, "gpu_driver", lambda: "580.1")
    check = doctor.check_devices()
    assert check.status == "warn"
    assert "driver 580.1" in check.detail
    assert "torch for CUDA" in check.fix
    monkeypatch.setattr(doctor, "gpu_driver", lambda: None)
    assert doctor.check_devices().status == "ok"


def test_devices_are_named_with_their_memory(monkeypatch):
    devices = [["Some GPU", [60 * GIB, 80 * GIB]]]
    info = json.dumps({"version": "2.13.0", "cuda": "13.0", "devices": devices})
    monkeypatch.setattr(doctor, "_run_python", lambda _program: (info, ""))
    assert "Some GPU (60.0 GiB of 80.0 GiB free)" in doctor.check_devices().detail


@pytest.mark.parametrize(("needed", "status"), [(True, "fail"), (False, "warn")])
def test_a_missing_compiler_matters_with_a_gpu(monkeypatch, needed, status):
    monkeypatch.setattr(doctor.shutil, "which", lambda _name: None)
    assert doctor.check_compiler(needed).status == status


def test_an_endpoint_is_asked():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        assert doctor.check_endpoint(address).status == "ok"
    check = doctor.check_endpoint(address)
    assert check.status == "fail"
    assert "data.endpoint" in check.fix
    for bad in ("127.0.0.1:9000", "http://host:port", ""):
        assert doctor.check_endpoint(bad).status == "fail"


def test_no_secret_is_printed():
    assert "hidden" not in doctor.check_endpoint("http://key:hidden@127.0.0.1:1").detail


def test_a_store_is_opened(tmp_path, monkeypatch):
    from gear_dist.data import manifest

    assert doctor.check_corpus_address(str(tmp_path), "").status == "warn", "empty"
    (tmp_path / "file").write_text("x")
    assert doctor.check_corpus_address(str(tmp_path), "").status == "fail", "no manifest"
    info = types.SimpleNamespace(num_samples=12, num_shards=3)
    loaded = types.SimpleNamespace(info=info)
    monkeypatch.setattr(manifest, "load_manifest", lambda _storage: loaded)
    assert (
        doctor.check_corpus_address(str(tmp_path / "none"), "").fix
        == f"gear-dist shard SOURCE {tmp_path}/none"
    )
    check = doctor.check_corpus_address(str(tmp_path), "")
    assert (check.status, check.detail) == ("ok", f"{tmp_path}: 12 images, 3 shards")


def test_a_store_that_refuses_gives_its_own_line(tmp_path, monkeypatch):
    from gear_dist.storage import open as module

    def refuse(_address, _endpoint):
        raise DataError("s3://b: wrong credentials; set AWS_ACCESS_KEY_ID")

    monkeypatch.setattr(module, "open_storage", refuse)
    check = doctor.check_corpus_address("s3://b", "")
    assert (check.status, check.detail) == (
        "fail",
        "s3://b: wrong credentials; set AWS_ACCESS_KEY_ID",
    )


CAPTIONED = """
generator: {condition: text, text_width: 2048}
data: {captions: random}
stages: {generator: {steps: 1}}
"""


def test_the_text_encoder_of_a_run_file_is_counted(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(CAPTIONED)
    check = doctor.check_text_encoder(path, on_cuda=True)
    assert check.status == "ok"
    for needle in ("1,720,574,976 parameters", "3.2 GiB", "bf16", "GFLOP a caption"):
        assert needle in check.detail
    path.write_text(path.read_text() + "text_encoder: {path: nobody/has-this}\n")
    check = doctor.check_text_encoder(path, on_cuda=True)
    assert (check.status, bool(check.fix)) == ("warn", True)
    path.write_text("data: {captions: random}\nstages: {generator: {steps: 1}}\n")
    assert "no captions" in doctor.check_text_encoder(path, on_cuda=True).detail
    path.write_text("data: {captoins: random}\n")
    with pytest.raises(ConfigError, match="captions"):
        list(doctor.run_checks(config=path))


def test_an_encoder_that_does_not_fit_fails(tmp_path, monkeypatch):
    path = tmp_path / "run.yaml"
    path.write_text(CAPTIONED)
    monkeypatch.setattr(doctor, "memory_bytes", lambda: (8 * GIB, 4 * GIB))
    check = doctor.check_text_encoder(path, on_cuda=False)
    assert check.status == "fail"
    assert "data.caption_features" in check.fix

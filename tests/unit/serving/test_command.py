"""`gear-dist serve` before anything starts, and the application of Serve's configuration files."""

import re
import socket
from pathlib import Path

import pytest
import yaml

from gear_dist.cli.main import main
from gear_dist.cli.main import parse as parse_command
from gear_dist.cli.serve import server_settings
from gear_dist.config.models import SamplingConfig
from gear_dist.distributed.ray_cluster import command_cluster
from gear_dist.errors import ConfigError, DataError
from gear_dist.inference.model_folder import open_model
from gear_dist.serving.deployment import ReplicaArguments, build
from gear_dist.serving.server import hold_port
from refusals import refused
from tiny_pair import make_tiny_pair

DOCS = Path(__file__).parents[3] / "docs"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serving") / "model"
    make_tiny_pair(folder)
    return folder


def run(*words: object) -> int:
    args = parse_command(["serve", *map(str, words)])
    return args.run(args)


def test_a_dry_run_says_where(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(model, "--dry-run", "--port", 0, "--device", "cpu") == 0
    assert re.search(r"http://127\.0\.0\.1:[1-9][0-9]+$", capsys.readouterr().out.strip())


def test_a_port_that_is_taken(model: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with refused(ConfigError, "--port", port, "in use"):
            run(model, "--dry-run", "--port", port)


def test_a_host_that_is_none(model: Path) -> None:
    with refused(ConfigError, "--host", "192.0.2.7"):
        run(model, "--dry-run", "--host", "192.0.2.7", "--port", 0)


def test_models_that_cannot_be_served(model: Path, tmp_path: Path) -> None:
    with refused(DataError, tmp_path):
        run(tmp_path, "--dry-run", "--port", 0)
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in model.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    (broken / "generator.safetensors").write_bytes((model / "tokenizer.safetensors").read_bytes())
    with refused(DataError, "generator"):
        run(broken, "--dry-run", "--port", 0)
    (broken / "tokenizer.safetensors").unlink()
    with refused(DataError, "tokenizer", broken):
        run(broken, "--dry-run", "--port", 0)


def test_on_cuda_batches_are_filled_up_unless_told_otherwise(model: Path) -> None:
    def sampling(device: str, *words: str) -> SamplingConfig:
        args = parse_command(["serve", str(model), *words])
        return server_settings(args, open_model(model), device, 1).sampling

    assert (sampling("cuda").fixed_batches, sampling("cuda").batch) == (True, 32)
    assert not sampling("cuda", "--no-fixed-batches").fixed_batches
    assert (sampling("cpu").fixed_batches, sampling("cpu", "--batch", "3").batch) == (False, 3)


def test_a_port_belongs_to_one_server() -> None:
    """Ray's proxy binds it late, and beside another's."""
    with hold_port(18_999):
        with refused(ConfigError, "--port", 18_999), hold_port(18_999):
            pass
        with hold_port(18_998):
            pass
    with hold_port(18_999):
        pass


def test_settings_that_the_model_cannot_follow(model: Path, tmp_path: Path) -> None:
    with refused(ConfigError, "sampling.top_k=999"):
        run(model, "--dry-run", "--port", 0, "--top-k", 999)
    make_tiny_pair(tmp_path / "unguided", "generator.class_dropout=0")
    with refused(ConfigError, "sampling.guidance=2.0"):
        run(tmp_path / "unguided", "--dry-run", "--port", 0, "--guidance", 2)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "no-such-host.invalid:6379", "[::1]:1"])
def test_a_cluster_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with refused(ConfigError, "RAY_ADDRESS", "nobody answers"), command_cluster(1):
        pass


def test_without_ray_serve_the_extra_is_named(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["serve", str(model)]) == 2
    assert "gear-dist[serve]" in capsys.readouterr().err


def test_the_configuration_file_of_the_docs(model: Path) -> None:
    [text] = re.findall(r"```yaml\n(.*?)```", (DOCS / "serving.md").read_text(), re.DOTALL)
    [application] = yaml.safe_load(text)["applications"]
    assert application["import_path"] == "gear_dist.serving.deployment:build"
    arguments = ReplicaArguments(**application["args"] | {"model": str(model)})
    deployment = build(arguments)._bound_deployment
    assert (deployment.num_replicas, deployment.ray_actor_options["num_gpus"]) == (2, 1)
    [settings] = deployment.init_args
    assert (settings.batch, settings.sampling.guidance) == (32, 1.5)
    assert settings.sampling.fixed_batches
    with pytest.raises(ValueError, match="replica"):
        ReplicaArguments(model=str(model), replica=2)  # type: ignore[call-arg]

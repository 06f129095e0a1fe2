"""The server as real processes: many clients, clients that leave, replicas that die, its end."""

import base64
import io
import os
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import psutil
import pytest
from PIL import Image
from ray_nodes import ray_nodes

import gear_dist
from image_server import ImageServer, image_server, is_replica
from tiny_pair import NUM_CLASSES, make_tiny_pair

PATH = "/v1/images/generations"
CLIENTS = 32
LONG = 800
"""Images of a request that takes several seconds, one at a time."""
TIMEOUT_S = 90


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serving") / "model"
    make_tiny_pair(folder)
    return folder


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[ImageServer]:
    with image_server(model, "--queue", str(LONG), "--max-images", str(LONG), "--batch", "4") as it:
        yield it


def pixels(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def number(server: ImageServer, name: str) -> float:
    page = httpx.get(server.url + "/metrics").text
    [line] = [line for line in page.splitlines() if line.startswith(name + " ")]
    return float(line.split()[-1])


def wait_for(what: str, holds: Any) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def test_many_clients_at_once_each_get_their_own(server: ImageServer, model: Path) -> None:
    pair = gear_dist.load(model, device="cpu")
    start = threading.Barrier(CLIENTS)

    def ask(client: int) -> list[dict[str, Any]]:
        with openai.OpenAI(
            base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=TIMEOUT_S
        ) as api:
            start.wait(TIMEOUT_S)
            found = []
            for turn in range(3):
                answer = api.images.generate(
                    model="any",
                    prompt=str(client % NUM_CLASSES),
                    n=1 + client % 2,
                    response_format="b64_json",
                    extra_body={"seed": 100 * client + turn, "guidance": 1 + client % 3},
                )
                assert answer.data is not None
                found.append([pixels(item.b64_json or "") for item in answer.data])
            return found

    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = list(pool.map(ask, range(CLIENTS)))
    for client, turns in enumerate(answers):
        for turn, images in enumerate(turns):
            wanted = pair.generate(
                classes=[client % NUM_CLASSES] * len(images),
                seed=100 * client + turn,
                guidance=float(1 + client % 3),
            )
            assert np.array_equal(np.stack(images), wanted.tensor.permute(0, 2, 3, 1).numpy())


def test_the_client_of_the_docs(server: ImageServer, capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs/serving.md").read_text()
    [code] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    code = code.replace("http://127.0.0.1:8000", server.url).replace("circle_solid", "3")
    exec(code, {})
    assert base64.b64decode(capsys.readouterr().out.strip()[:8]).startswith(b"\x89PNG")


def test_a_client_that_leaves_is_not_worked_for(server: ImageServer) -> None:
    before = number(server, "gear_requests_abandoned_total")
    sent = number(server, "gear_images_total")
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(server.url + PATH, json={"prompt": 0, "n": LONG}, timeout=0.7)
    wait_for("the queue to be empty", lambda: number(server, "gear_images_waiting") == 0)
    assert number(server, "gear_requests_abandoned_total") == before + 1
    assert number(server, "gear_images_total") == sent


def test_a_full_queue_is_told_at_once(server: ImageServer) -> None:
    long: list[int] = []

    def ask() -> None:
        body = {"prompt": 0, "n": LONG, "guidance": 3}
        long.append(httpx.post(server.url + PATH, json=body, timeout=TIMEOUT_S).status_code)

    thread = threading.Thread(target=ask)
    thread.start()
    wait_for("the queue to fill", lambda: number(server, "gear_images_waiting") > LONG / 2)
    answer = httpx.post(server.url + PATH, json={"prompt": 0, "n": LONG}, timeout=5)
    assert answer.status_code == 429, answer.text
    assert int(answer.headers["Retry-After"]) >= 1
    # A look at the health does not wait for the model.
    assert httpx.get(server.url + "/healthz", timeout=5).json() == {"status": "ok"}
    thread.join(TIMEOUT_S)
    assert long == [200]


def test_a_killed_replica_comes_back(server: ImageServer) -> None:
    [replica] = server.replicas()
    replica.kill()

    def answers() -> bool:
        try:
            return httpx.post(server.url + PATH, json={"prompt": 0}, timeout=30).is_success
        except httpx.TransportError:
            return False

    replica.wait(10)
    wait_for("an answer after the kill", answers)
    assert [each.pid for each in server.replicas()] != [replica.pid]


@pytest.mark.slow  # two nodes and two replicas take most of a minute to start
def test_replicas_on_a_cluster_that_is_there(model: Path) -> None:
    """The application ends with the command; the cluster stays."""
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    with ray_nodes(environment | {"OMP_NUM_THREADS": "1"}) as nodes:
        node = nodes.start_node(cpus=2)
        options = ("--replicas", "2", "--threads", "1")
        variables = {key: nodes.environment[key] for key in ("RAY_ADDRESS", "RAY_AUTH_MODE")}
        with image_server(model, *options, **variables) as server:
            body = {"prompt": 1, "seed": 5}
            answers = [httpx.post(server.url + PATH, json=body, timeout=30) for _ in range(8)]
            assert len({answer.json()["data"][0]["b64_json"] for answer in answers}) == 1
            replicas = list(filter(is_replica, psutil.Process(node.pid).children(recursive=True)))
            assert len(replicas) == 2
        _, alive = psutil.wait_procs(replicas, 30)
        assert alive == []
        assert node.poll() is None

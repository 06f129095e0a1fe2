"""The server's answers on a tiny pair, and what it refuses."""

import asyncio
import base64
import contextlib
import io
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.requests import Request
from starlette.testclient import TestClient

import gear_dist
from gear_dist.cli.main import main
from gear_dist.config.models import SamplingConfig
from gear_dist.runs.classes import write_class_names
from gear_dist.serving import routes as routes_module
from gear_dist.serving import service as service_module
from gear_dist.serving.errors import RequestError
from gear_dist.serving.routes import build_app
from gear_dist.serving.service import Service
from gear_dist.serving.settings import ServerSettings
from gear_dist.serving.token_map import code_colours
from tiny_pair import make_tiny_pair

NAMES = ["apple", "pear", "plum", "quince"]
URL = "/v1/images/generations"
SIDE, GRID, CODES = 16, 4, 32


def serve(model: Path, **changes: Any) -> TestClient:
    settings = ServerSettings(str(model), SamplingConfig(guidance=1.5), device="cpu", threads=1)
    return TestClient(build_app(Service(settings._replace(**changes))))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serving") / "tiny pair"
    make_tiny_pair(folder)
    write_class_names(folder, NAMES)
    return folder


@pytest.fixture(scope="module")
def client(model: Path) -> Iterator[TestClient]:
    with serve(model, max_body_bytes=100_000) as client:
        yield client


def pixels(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def generate(client: TestClient, **body: Any) -> list[dict[str, Any]]:
    answer = client.post(URL, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["data"]


def refusal(answer: Any, status: int, *needles: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert [needle for needle in needles if needle not in error["message"]] == [], error
    assert set(error) == {"message", "type", "param", "code"}
    return error


def test_images_are_those_of_the_pair(model: Path, client: TestClient) -> None:
    found = generate(client, prompt="plum", n=3, seed=5, top_k=8)
    pair = gear_dist.load(model, device="cpu")
    wanted = pair.generate(classes=["plum"] * 3, seed=5, guidance=1.5, top_k=8)
    shown = np.stack([pixels(item["b64_json"]) for item in found])
    assert np.array_equal(shown, wanted.tensor.permute(0, 2, 3, 1).numpy())
    assert [item["seed"] for item in found] == list(wanted.seeds)
    assert [item["class_name"] for item in found] == ["plum"] * 3
    alone = generate(client, prompt=2, seed=str(found[2]["seed"]), top_k=8)
    assert alone[0]["b64_json"] == found[2]["b64_json"]


def test_the_command_makes_the_same_image(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gear_dist.report.image_grid._MIN_TILE", SIDE)
    found = generate(
        client, prompt="pear", n=2, seed=9, temperature=0.7, guidance_schedule="cosine"
    )
    words = shlex.split(found[1]["command"])
    assert words[:2] == ["gear-dist", "sample"]
    monkeypatch.chdir(tmp_path)
    out = tmp_path / words[words.index("--out") + 1]
    assert main([*words[1:], "--columns", "1"]) == 0
    again = np.asarray(Image.open(out).convert("RGB"))
    # The grid has a gap around, and the class's name below.
    shown = pixels(found[1]["b64_json"])
    windows = np.lib.stride_tricks.sliding_window_view(again, shown.shape)
    assert (windows == shown).all(axis=(-1, -2, -3)).any()


def test_names_that_look_like_indices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an image folder's: sorted as text, so that the class called 10 comes before 2."""
    make_tiny_pair(tmp_path / "model")
    write_class_names(tmp_path / "model", ["0", "3", "2", "1"])
    with serve(tmp_path / "model") as client:
        [by_index] = generate(client, prompt=1, seed=4)
        [by_name] = generate(client, prompt="3", seed=4)
        assert (by_index["class"], by_name["class"]) == (1, 1)
        assert by_index["b64_json"] == by_name["b64_json"]
        words = shlex.split(by_index["command"])
    monkeypatch.chdir(tmp_path)
    assert main([*words[1:], "--columns", "1"]) == 0
    again = np.asarray(Image.open(tmp_path / "sample-4.png").convert("RGB"))
    shown = pixels(by_index["b64_json"]).repeat(6, 0).repeat(6, 1)  # to 96 pixels
    windows = np.lib.stride_tricks.sliding_window_view(again, shown.shape)
    assert (windows == shown).all(axis=(-1, -2, -3)).any()


def test_the_picture_knows_what_it_is(client: TestClient) -> None:
    [found] = generate(client, prompt="pear", seed=3)
    text = Image.open(io.BytesIO(base64.b64decode(found["b64_json"]))).text  # type: ignore[attr-defined]
    assert text["class_name"] == "pear"
    assert text["seed"] == "3"
    assert text["command"] == found["command"]


def test_without_a_seed_images_differ_and_can_be_had_again(client: TestClient) -> None:
    first, second = (generate(client, prompt="pear")[0] for _ in range(2))
    assert first["seed"] != second["seed"]
    assert generate(client, prompt="pear", seed=first["seed"])[0]["b64_json"] == first["b64_json"]


def test_what_openai_clients_send_is_taken(client: TestClient) -> None:
    extra = {"model": "dall-e-3", "user": "u", "quality": "hd", "style": "vivid", "size": "16x16"}
    extra |= {"n": None, "background": None, "guidance": None}
    [found] = generate(client, prompt="pear", seed=1, response_format="b64_json", **extra)
    assert found["b64_json"] == generate(client, prompt="pear", seed=1)[0]["b64_json"]


@pytest.mark.parametrize(
    ("body", "needles", "field"),
    [
        ({"prompt": "pea"}, ["pea", "pear", "0 .. 3"], "prompt"),
        ({"prompt": 4}, ["4", "0 .. 3"], "prompt"),
        ({"prompt": ""}, ["0 .. 3"], "prompt"),
        ({}, ["prompt"], "prompt"),
        ({"prompt": ["pear"]}, ["prompt"], "prompt"),
        ({"prompt": "pear", "n": 0}, ["n=0", "1"], "n"),
        ({"prompt": "pear", "n": 10_000}, ["n=10000", "16", "--num"], "n"),
        ({"prompt": "pear", "n": True}, ["n=True"], "n"),
        ({"prompt": "pear", "n": 1.5}, ["n=1.5"], "n"),
        ({"prompt": "pear", "size": "512x512"}, ["512x512", "16x16"], "size"),
        ({"prompt": "pear", "seed": -1}, ["seed=-1", "64 bits"], "seed"),
        ({"prompt": "pear", "seed": 2**64}, [str(2**64), "64 bits"], "seed"),
        ({"prompt": "pear", "seed": "9" * 5000}, ["64 bits"], "seed"),
        ({"prompt": "pear", "seed": "0" * 40 + "9" * 30}, ["64 bits"], "seed"),
        ({"prompt": "pear", "guidance": 1e308}, ["guidance=1e+308", "10000"], "guidance"),
        ({"prompt": "pear", "seed": "٣"}, ["whole number"], "seed"),
        ({"prompt": "pear", "response_format": "url"}, ["url", "b64_json"], "response_format"),
        ({"prompt": "pear", "guidanc": 2}, ["guidanc", "guidance"], "guidanc"),
        ({"prompt": "pear", "guidance": "much"}, ["guidance"], "guidance"),
        ({"prompt": "pear", "guidance": -1}, ["guidance=-1"], "guidance"),
        ({"prompt": "pear", "temperature": -1}, ["temperature=-1"], "temperature"),
        ({"prompt": "pear", "top_k": CODES + 1}, [f"top_k={CODES + 1}", str(CODES)], "top_k"),
        ({"prompt": "pear", "top_p": 0}, ["top_p=0"], "top_p"),
        ({"prompt": "pear", "stream": True}, ["stream"], "stream"),
    ],
)
def test_impossible_requests(
    client: TestClient, body: dict[str, Any], needles: list[str], field: str
) -> None:
    error = refusal(client.post(URL, json=body), 400, *needles)
    assert (error["type"], error["param"]) == ("invalid_request_error", field)


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"null", b'"pear"', b"\xff\xfe", b'{"prompt": "\\ud800"}', b"[" * 50_000],
)
def test_bodies_that_are_no_request(client: TestClient, data: bytes) -> None:
    refusal(client.post(URL, content=data, headers={"Content-Type": "application/json"}), 400)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_numbers_that_are_none(client: TestClient, number: str) -> None:
    data = f'{{"prompt": "pear", "guidance": {number}}}'
    headers = {"Content-Type": "application/json"}
    refusal(client.post(URL, content=data, headers=headers), 400, "guidance")


def test_large_bodies_and_other_types(client: TestClient) -> None:
    headers = {"Content-Type": "application/json"}
    refusal(client.post(URL, content=b" " * 300_000, headers=headers), 413, "larger")
    # What a form of another site can send.
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        answer = client.post(URL, content=b"{}", headers={"Content-Type": kind})
        refusal(answer, 415, kind, "application/json")


def test_a_full_queue_says_when_to_come_again(model: Path) -> None:
    with serve(model, queue=2) as client:
        answer = client.post(URL, json={"prompt": "pear", "n": 3})
        assert refusal(answer, 429, "waiting")["type"] == "rate_limit_error"
        assert int(answer.headers["Retry-After"]) >= 1
        assert len(generate(client, prompt="pear", n=2)) == 2


def number(client: TestClient, name: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith(f"{name} ")).split()[1])


def picture(size: tuple[int, int] = (40, 24)) -> bytes:
    rng = np.random.default_rng(0)
    buffer = io.BytesIO()
    small = Image.fromarray(rng.integers(0, 256, (3, 5, 3), dtype=np.uint8))
    small.resize(size, Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_reconstruction_and_its_tokens(model: Path, client: TestClient, tmp_path: Path) -> None:
    file = tmp_path / "picture.png"
    file.write_bytes(picture())
    pair = gear_dist.load(model, device="cpu")
    answer = client.post(
        "/v1/reconstruct", content=file.read_bytes(), headers={"Content-Type": "image/png"}
    )
    [found] = answer.json()["data"]
    indices_BL = pair.encode(file)
    assert found["tokens"] == indices_BL.view(GRID, GRID).tolist()
    wanted = pair.decode(indices_BL).tensor[0].permute(1, 2, 0).numpy()
    assert np.array_equal(pixels(found["b64_json"]), wanted)
    assert pixels(found["original_b64_json"]).shape == (SIDE, SIDE, 3)
    colours_K3 = code_colours(pair.pipeline.tokenizer, CODES)
    assert np.array_equal(pixels(found["token_map_b64_json"]), colours_K3[found["tokens"]])
    text = base64.b64encode(file.read_bytes()).decode()
    for image in (text, f"data:image/png;base64,{text}"):
        assert client.post("/v1/reconstruct", json={"image": image}).json()["data"] == [found]


def test_pictures_that_are_none(client: TestClient, model: Path) -> None:
    headers = {"Content-Type": "image/png"}
    post = client.post
    refusal(post("/v1/reconstruct", content=b"", headers=headers), 400, "image")
    refusal(post("/v1/reconstruct", content=b"no picture", headers=headers), 400, "image")
    refusal(post("/v1/reconstruct", content=picture()[:200], headers=headers), 400, "image")
    refusal(post("/v1/reconstruct", content=b"x" * 100_001, headers=headers), 413, "100,000")
    refusal(post("/v1/reconstruct", json={"image": "not base64!"}), 400, "base64")
    refusal(post("/v1/reconstruct", json={"image": "data:image/png,x"}), 400, "base64")
    refusal(post("/v1/reconstruct", json={"picture": "x"}), 400, "picture", "image")
    refusal(post("/v1/reconstruct", content=b"{}", headers={"Content-Type": "text/plain"}), 415)


def test_a_picture_of_too_many_pixels(client: TestClient) -> None:
    """Its header is enough: 100 megapixels of one grey are a file of a few kilobytes."""
    buffer = io.BytesIO()
    Image.new("1", (12_000, 9_000)).save(buffer, "PNG")
    answer = client.post(
        "/v1/reconstruct", content=buffer.getvalue(), headers={"Content-Type": "image/png"}
    )
    refusal(answer, 413, "12000 x 9000", "max_pixels")


def test_more_pixels_than_pil_opens(client: TestClient) -> None:
    buffer = io.BytesIO()
    Image.new("1", (20_000, 10_000)).save(buffer, "PNG")
    answer = client.post(
        "/v1/reconstruct", content=buffer.getvalue(), headers={"Content-Type": "image/png"}
    )
    refusal(answer, 413, "pixels")


def test_only_a_few_pictures_are_read_at_a_time(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slot comes before the body, and goes with the request."""
    monkeypatch.setattr(service_module, "MOST_PICTURES", 0)
    headers = {"Content-Type": "image/png"}
    with serve(model) as client:
        answer = client.post("/v1/reconstruct", content=picture(), headers=headers)
        assert refusal(answer, 429, "waiting")
        assert answer.headers["Retry-After"] == "1"
        monkeypatch.setattr(service_module, "MOST_PICTURES", 1)
        for _ in range(2):  # the slot of a refused one is free again
            answer = client.post("/v1/reconstruct", content=b"no picture", headers=headers)
            refusal(answer, 400, "image")


def test_a_slot_is_taken_while_its_picture_is_worked_on(model: Path) -> None:
    service = Service(ServerSettings(str(model), SamplingConfig(), device="cpu"))
    with contextlib.ExitStack() as stack:
        for _ in range(service_module.MOST_PICTURES):
            stack.enter_context(service.picture_slot())
        with pytest.raises(RequestError, match="16 pictures"), service.picture_slot():
            pass
    with service.picture_slot():
        pass


def test_a_body_that_does_not_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes_module, "_BODY_S", 0.05)

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(20)
        raise AssertionError

    def request(*headers: tuple[bytes, bytes]) -> Request:
        return Request({"type": "http", "headers": list(headers)}, receive)

    with pytest.raises(RequestError, match="did not arrive") as caught:
        asyncio.run(routes_module.read_bytes(request(), 10))
    assert caught.value.status == 408
    with pytest.raises(RequestError, match="larger") as caught:
        asyncio.run(routes_module.read_bytes(request((b"content-length", b"9999999999")), 10))
    assert caught.value.status == 413


def test_a_tokenizer_alone_reconstructs(model: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    for name in ("config.json", "tokenizer.safetensors"):
        (alone / name).write_bytes((model / name).read_bytes())
    with serve(alone) as client:
        refusal(client.post(URL, json={"prompt": 0}), 404, "alone", "generator")
        assert client.get("/v1/models").json()["data"][0]["generates"] is False
        headers = {"Content-Type": "image/png"}
        answer = client.post("/v1/reconstruct", content=picture(), headers=headers)
        assert answer.status_code == 200


def test_guidance_without_a_null_class(tmp_path: Path) -> None:
    folder = tmp_path / "unguided"
    make_tiny_pair(folder, "generator.class_dropout=0")
    with serve(folder, sampling=SamplingConfig(guidance=1)) as client:
        refusal(
            client.post(URL, json={"prompt": 0, "guidance": 2}), 400, "guidance=2", "null class"
        )
        assert client.get("/v1/models").json()["data"][0]["guidance_possible"] is False
        generate(client, prompt=0)


def test_model_health_numbers_and_schema(client: TestClient) -> None:
    [found] = client.get("/v1/models").json()["data"]
    assert (found["id"], found["object"], found["classes"]) == ("tiny pair", "model", NAMES)
    assert found["sampling"]["guidance"] == 1.5
    assert client.get("/healthz").json() == {"status": "ok"}
    assert [client.head(path).status_code for path in ("/healthz", "/")] == [200, 200]
    before = number(client, "gear_images_total")
    generate(client, prompt="pear", n=3)
    assert number(client, "gear_images_total") == before + 3
    page = client.get("/metrics").text
    assert f'gear_requests_total{{route="{URL}",status="200"}}' in page
    assert "gear_images_waiting 0.0" in page
    schema = client.get("/openapi.json").json()
    body = schema["paths"][URL]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert "guidance" in body["properties"]


def test_unknown_routes_and_methods_answer_in_the_same_shape(client: TestClient) -> None:
    refusal(client.get("/v1/nothing"), 404, "/v1/nothing")
    refusal(client.get(URL), 405, "GET")


def test_an_unexpected_error_tells_nothing_of_the_machine(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ServerSettings(str(model), SamplingConfig(), device="cpu")
    service = Service(settings)

    def fail(request: object) -> None:
        raise RuntimeError("/home/someone/secret")

    monkeypatch.setattr(service, "_read", fail)
    with TestClient(build_app(service), raise_server_exceptions=False) as client:
        answer = client.post(URL, json={"prompt": 0})
        refusal(answer, 500, "log")
        assert "someone" not in answer.text


def test_the_page_takes_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/")
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    for name in ("/", "/page.js", "/page.css"):
        text = client.get(name).text
        assert "//" not in "".join(line for line in text.split() if "http" in line)
        assert "style=" not in text  # the policy forbids it
    assert "frame-ancestors 'none'" in page.headers["Content-Security-Policy"]


def test_like_codes_have_like_colours(model: Path) -> None:
    tokenizer = gear_dist.load(model, device="cpu").pipeline.tokenizer
    table_KC = torch.randn(CODES // 2, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        tokenizer.quantize.embedding.weight.copy_(torch.cat([table_KC, table_KC + 1e-6]))
    colours_K3 = code_colours(tokenizer, CODES).astype(int)
    assert np.abs(colours_K3[: CODES // 2] - colours_K3[CODES // 2 :]).max() <= 1
    assert len(np.unique(colours_K3[: CODES // 2], axis=0)) == CODES // 2


def test_answers_are_strict_json(client: TestClient) -> None:
    text = client.get("/v1/models").text
    json.loads(text, parse_constant=lambda name: pytest.fail(name))

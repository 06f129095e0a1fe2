"""`gear-dist look`, through the command line, on tiny pairs."""

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import gear_dist
from gear_dist.cli.main import main
from image_files import encode
from sample_shards import SampleShards
from tiny_pair import make_tiny_pair
from tiny_text_encoders import WIDTH, save_text_encoder

SIDE = 16
GRID_GAP = 4
"""Of `gear-dist sample`'s grid."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("look") / "model"
    make_tiny_pair(folder)
    return folder


@pytest.fixture(scope="module")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("look-text")
    save_text_encoder("t5", folder / "encoder")
    make_tiny_pair(
        folder / "model",
        "generator.condition=text",
        f"generator.text_width={WIDTH}",
        "text_encoder.name=t5",
        f"text_encoder.path={folder / 'encoder'}",
    )
    return folder / "model"


def look(out: Path, *words: object) -> tuple[np.ndarray, dict[str, Any]]:
    """The sheet's pixels and its JSON."""
    assert main(["look", *map(str, words), "--out", str(out), "--device", "cpu"]) == 0
    picture = Image.open(out)
    facts = json.loads(out.with_suffix(".sheet.json").read_text())
    assert json.loads(picture.text["sheet"]) == facts, "a PNG alone says what it shows"
    return np.asarray(picture.convert("RGB")), facts


def cut(sheet: np.ndarray, facts: dict[str, Any], image: dict[str, Any]) -> np.ndarray:
    """An image of a sheet, (16, 16, 3)."""
    left, top, width, height = image["box"]
    large = sheet[top : top + height, left : left + width]
    small = large[:: facts["scale"], :: facts["scale"]]
    assert small.shape == (SIDE, SIDE, 3)
    assert np.array_equal(small.repeat(facts["scale"], 0).repeat(facts["scale"], 1), large)
    return small


def made_by(command: str, folder: Path) -> np.ndarray:
    """The one image of a command that a sheet names."""
    program, *words = shlex.split(command)
    assert program == "gear-dist"
    out = folder / "alone.png"
    assert main([*words, "--out", str(out), "--device", "cpu"]) == 0
    grid = np.asarray(Image.open(out).convert("RGB"))
    scale = 96 // SIDE
    return grid[GRID_GAP : GRID_GAP + 96 : scale, GRID_GAP : GRID_GAP + 96 : scale]


def check_commands(sheet: np.ndarray, facts: dict[str, Any], folder: Path) -> int:
    """Whether every command gives its image; how many there are."""
    named = [image for image in facts["images"] if "command" in image]
    for image in named:
        assert np.array_equal(cut(sheet, facts, image), made_by(image["command"], folder)), image
    return len(named)


def distinct(sheet: np.ndarray, facts: dict[str, Any]) -> int:
    return len({cut(sheet, facts, image).tobytes() for image in facts["images"]})


class TestGuidance:
    WORDS = ("--guidance", "1,3", "--temperature", "0,0.6,1.2", "--top-k", "9", "--seed", "7")

    def test_a_cell_is_what_sample_makes(self, model: Path, tmp_path: Path) -> None:
        out = tmp_path / "sheet.png"
        words = ("--classes", "3,1", "--count", "2", "--no-compile")
        sheet, facts = look(out, "guidance", model, *self.WORDS, *words)
        assert check_commands(sheet, facts, tmp_path) == 2 * 3 * 2
        assert distinct(sheet, facts) > 6
        settings = [image["sampling"] for image in facts["images"]]
        assert {(s["guidance"], s["temperature"]) for s in settings} == {
            (g, t) for g in (1, 3) for t in (0, 0.6, 1.2)
        }
        assert all(s["top_k"] == 9 and s["compile"] is False for s in settings)
        seeds = {image["place"]: set() for image in facts["images"]}
        for image in facts["images"]:
            seeds[image["place"]].add(image["seed"])
        assert [len(found) for found in seeds.values()] == [1, 1], "the same in every cell"
        assert [image["class"] for image in facts["images"][:2]] == [3, 1]

    def test_whole_cells_are_grids_of_sample(self, model: Path, tmp_path: Path) -> None:
        sheet, facts = look(tmp_path / "s.png", "guidance", model, *self.WORDS, "--count", 3)
        words = ["--count", "3", "--seed", "7", "--top-k", "9", "--guidance", "3"]
        out = tmp_path / "grid.png"
        words += ["--temperature", "1.2", "--columns", "3", "--out", str(out), "--device", "cpu"]
        assert main(["sample", str(model), *words, "--classes", "0,2,3"]) == 0
        grid = np.asarray(Image.open(out).convert("RGB"))
        pair = gear_dist.load(model, device="cpu")
        wanted = pair.generate([0, 1, 2], seed=7, top_k=9, guidance=3, temperature=1.2)
        cell = [i for i in facts["images"] if i["row"] == 1 and i["column"] == 2]
        assert grid.shape[1] == 3 * 100 + GRID_GAP
        assert [i["class"] for i in cell] == [0, 1, 2]
        for image, pixels in zip(cell, wanted.tensor, strict=True):
            assert np.array_equal(cut(sheet, facts, image), pixels.permute(1, 2, 0).numpy())

    def test_prompts(self, text_model: Path, tmp_path: Path) -> None:
        words = ("--prompt", "a red circle", "--prompt", "-a cat's dog", "--temperature", "1")
        sheet, facts = look(
            tmp_path / "s.png", "guidance", text_model, "--guidance=1,2", *words[2:]
        )
        assert facts["images"][0]["prompt"] == "-a cat's dog"
        assert check_commands(sheet, facts, tmp_path) == 2

    def test_defaults_without_a_null_class(self, tmp_path: Path, capsys: Any) -> None:
        make_tiny_pair(tmp_path / "model", "generator.class_dropout=0")
        _, facts = look(tmp_path / "s.png", "guidance", tmp_path / "model", "--count", 1)
        assert facts["rows"] == ["guidance 1"]
        said = failing(capsys, 2, "guidance", tmp_path / "model", "--guidance", "1,2")
        assert "null class" in said


class TestInterpolation:
    def test_two_classes(self, model: Path, tmp_path: Path) -> None:
        words = ("--classes", "0,3", "--steps", 5, "--rows", 2, "--seed", 4, "--guidance", 1.5)
        sheet, facts = look(tmp_path / "s.png", "interpolation", model, *words)
        assert check_commands(sheet, facts, tmp_path) == 4, "the ends of both rows"
        assert facts["columns"] == ["class 0", "25 %", "50 %", "75 %", "class 3"]
        assert [image["share"] for image in facts["images"][:5]] == [0, 0.25, 0.5, 0.75, 1]
        assert len({image["seed"] for image in facts["images"]}) == 2
        assert distinct(sheet, facts) > 4

    def test_two_classes_and_two_seeds(self, model: Path, tmp_path: Path) -> None:
        words = ("--classes", "2,1", "--steps", 3, "--rows", 3, "--seed", 4, "--to-seed", 9)
        sheet, facts = look(tmp_path / "s.png", "interpolation", model, *words)
        assert check_commands(sheet, facts, tmp_path) == 4, "the corners"
        assert facts["rows"] == ["seed 4", "50 %", "seed 9"]

    def test_one_class_and_two_seeds(self, model: Path, tmp_path: Path) -> None:
        words = ("--classes", "2", "--steps", 9, "--seed", 4, "--to-seed", 2**64 - 1)
        sheet, facts = look(tmp_path / "s.png", "interpolation", model, *words)
        assert check_commands(sheet, facts, tmp_path) == 2
        assert len(facts["rows"]) == 1
        assert distinct(sheet, facts) > 3

    def test_two_prompts_of_other_lengths(self, text_model: Path, tmp_path: Path) -> None:
        words = ("--prompt", "cat", "--prompt", "green triangles on a yellow ground", "--steps", 4)
        sheet, facts = look(tmp_path / "s.png", "interpolation", text_model, *words, "--rows", 2)
        assert check_commands(sheet, facts, tmp_path) == 4
        assert distinct(sheet, facts) > 4


def write_images(folder: Path, images: dict[str, bytes]) -> Path:
    for name, data in images.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def random_images(first: int, count: int) -> dict[str, bytes]:
    return {
        f"{seed % 3}/{seed}.png": encode(seed, "PNG", (SIDE, SIDE))
        for seed in range(first, first + count)
    }


class TestNeighbours:
    @pytest.fixture
    def corpora(self, tmp_path: Path) -> tuple[str, ...]:
        training = write_images(tmp_path / "training", random_images(0, 50))
        held_out = write_images(tmp_path / "held-out", random_images(100, 30))
        return "--corpus", str(training), "--held-out", str(held_out)

    def test_a_planted_copy_is_found(
        self, model: Path, tmp_path: Path, corpora: tuple[str, ...], capsys: Any
    ) -> None:
        samples = gear_dist.load(model, device="cpu").generate([0, 1, 2, 3], seed=5).pil()
        samples[2].save(tmp_path / "training" / "planted.png")
        mirrored = samples[1].transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        mirrored.save(tmp_path / "training" / "mirrored.png")
        words = (*corpora, "--count", 4, "--seed", 5, "-k", 3, "--image-batch", 7)
        sheet, facts = look(tmp_path / "s.png", "neighbours", model, *words)
        assert (facts["num_training"], facts["num_held_out"]) == (52, 30)
        rows = {row["sample"]: row["distances"] for row in facts["distances"]}
        assert max(rows[1][0], rows[2][0]) < 1e-3
        assert min(rows[0][0], rows[3][0], rows[1][1], rows[2][1]) > 0.1
        assert all(row == sorted(row) for row in rows.values())
        nearest = {
            image["neighbour_of"]: image for image in facts["images"] if image["column"] == 1
        }
        assert [nearest[i]["name"] for i in (1, 2)] == ["mirrored.png", "planted.png"]
        assert [nearest[i]["mirrored"] for i in (1, 2)] == [True, False]
        assert np.array_equal(cut(sheet, facts, nearest[2]), np.asarray(samples[2]))
        assert [row["sample"] for row in facts["distances"][:2]] in ([1, 2], [2, 1])
        own = {image["sample"]: image for image in facts["images"] if "sample" in image}
        assert [own[i]["held_out_share"] for i in (1, 2)] == [0, 0]
        assert np.array_equal(cut(sheet, facts, own[3]), np.asarray(samples[3]))
        assert facts["num_suspicious"] >= 2
        assert f"{facts['num_suspicious']} of 4 samples" in capsys.readouterr().out

    def test_the_batch_changes_nothing_that_matters(
        self, model: Path, tmp_path: Path, corpora: tuple[str, ...]
    ) -> None:
        found = []
        for batch in (1, 64):
            words = (*corpora, "--count", 3, "--image-batch", batch)
            _, facts = look(tmp_path / "s.png", "neighbours", model, *words)
            names = [image.get("name") for image in facts["images"]]
            found.append((names, facts["median_distance"]))
        assert found[0][0] == found[1][0]
        assert found[0][1] == pytest.approx(found[1][1], rel=1e-3)

    def test_held_out_images_are_as_far_as_samples_that_are_like_them(
        self, model: Path, tmp_path: Path, corpora: tuple[str, ...]
    ) -> None:
        """Of one distribution, samples that were never seen are not suspicious; copies all are."""
        fresh = write_images(tmp_path / "fresh", random_images(200, 30))
        copies = write_images(tmp_path / "copies", random_images(0, 30))
        counts, medians = [], []
        for folder in (fresh, copies):
            words = (*corpora, "--samples", folder, "--count", 30, "--rows", 2, "--no-reconstruct")
            _, facts = look(tmp_path / "s.png", "neighbours", model, *words)
            assert len(facts["rows"]) == 2
            assert len(facts["distances"]) == 30
            counts.append(facts["num_suspicious"])
            medians.append(facts["median_distance"])
            assert facts["copies_median_distance"] < 1e-3
            assert facts["copies_suspicious_share"] == 1
        assert counts[0] <= 3
        assert counts[1] == 30
        assert medians[0] > 0.1
        assert medians[1] < 1e-3

    def test_held_out_images_go_through_the_tokenizer(
        self, model: Path, tmp_path: Path, corpora: tuple[str, ...]
    ) -> None:
        """Samples come out of its decoder: what that adds to their distance is no novelty."""
        pair = gear_dist.load(model, device="cpu")
        names = random_images(0, 20)
        rebuilt = pair.reconstruct([tmp_path / "training" / name for name in names]).pil()
        (tmp_path / "rebuilt").mkdir()
        for number, picture in enumerate(rebuilt):
            picture.save(tmp_path / "rebuilt" / f"{number:02}.png")
        words = (*corpora, "--samples", tmp_path / "rebuilt", "--count", 20)
        _, facts = look(tmp_path / "s.png", "neighbours", model, *words)
        medians = [facts[key] for key in ("median_distance", "copies_median_distance")]
        assert medians[0] == pytest.approx(medians[1], rel=0.1), "they are copies, decoded"
        assert medians[0] > 0.1

    def test_shards_on_s3_in_a_teachers_features(
        self, model: Path, tmp_path: Path, sample_shards: SampleShards
    ) -> None:
        copied = sorted((sample_shards.tree / "train").rglob("*.jpg"))[7:9]
        folder = write_images(tmp_path / "copied", {p.name: p.read_bytes() for p in copied})
        teacher = tmp_path / "teacher.safetensors"
        words = ["--steps", "2", "--batch", "2", "--image-size", "16", "--grid-size", "4"]
        corpus = f"{sample_shards.file}/train"
        assert main(["teacher", corpus, "--out", str(teacher), *words]) == 0
        train, validation = f"{sample_shards.s3}/train", f"{sample_shards.s3}/validation"
        words = ["--corpus", train, "--held-out", validation, "--samples", str(folder)]
        words += ["--features", "teacher", "--teacher", "convnet", "--teacher-path", str(teacher)]
        _, facts = look(tmp_path / "s.png", "neighbours", model, *words)
        assert (facts["num_training"], facts["num_held_out"]) == (12 * 16, 2 * 16)
        assert [row["distances"][0] < 1e-3 for row in facts["distances"]] == [True, True]
        assert facts["features"]["network"] == "convnet"
        assert all(i["name"].startswith("shards/") for i in facts["images"] if i["column"])

    def test_tars_of_many_samples(
        self, model: Path, tmp_path: Path, corpora: tuple[str, ...]
    ) -> None:
        bulk = ["--num", "6", "--out", str(tmp_path / "many"), "--no-npz", "--device", "cpu"]
        assert main(["sample", str(model), *bulk]) == 0
        words = (*corpora, "--samples", tmp_path / "many", "--count", 5)
        _, facts = look(tmp_path / "s.png", "neighbours", model, *words)
        assert len(facts["distances"]) == 5


def failing(capsys: Any, code: int, *words: object) -> str:
    """The one line of a command that ends with an exit code."""
    capsys.readouterr()
    assert main(["look", *map(str, words), "--device", "cpu"]) == code
    *_, said = capsys.readouterr().err.strip().splitlines()
    return said


def test_what_is_refused(model: Path, text_model: Path, tmp_path: Path, capsys: Any) -> None:
    def refused(code: int, words: str, *needles: str) -> None:
        said = failing(capsys, code, *shlex.split(words))
        assert all(needle in said for needle in needles), said

    refused(2, f"guidance {model} --classes 9", "--classes 9", "0 .. 3")
    refused(2, f"guidance {model} --prompt dog", "--classes")
    refused(2, f"guidance {text_model}", "--prompt")
    refused(2, f"guidance {model} --guidance 1,x", "--guidance", "x")
    refused(2, f"guidance {model} --guidance 1,2,1", "--guidance", "twice")
    refused(2, f"guidance {model} --temperature -1", "--temperature", "-1")
    refused(2, f"guidance {model} --top-k 99", "sampling.top_k=99", "32")
    refused(2, f"interpolation {model}", "--classes")
    refused(2, f"interpolation {model} --classes 1", "--to-seed")
    refused(2, f"interpolation {model} --classes 1,2,3", "3 classes")
    refused(2, f"interpolation {model} --classes 1 --to-seed 3 --rows 2", "--rows 2")
    refused(2, f"interpolation {model} --classes 1,2 --to-seed 3 --rows 1", "--rows 1")
    refused(2, f"interpolation {model} --classes 1,2 --to-seed {2**64}", "--to-seed")
    refused(2, f"interpolation {model} --classes 1,2 --steps 1", "--steps", "at least 2")
    training = write_images(tmp_path / "training", random_images(0, 3))
    held_out = write_images(tmp_path / "held-out", random_images(9, 1))
    (tmp_path / "empty").mkdir()
    write_images(tmp_path / "words", {"a.txt": b"no image"})
    near = f"neighbours {model} --corpus {training} --held-out"
    refused(2, f"neighbours {model}", "--corpus")
    refused(2, f"neighbours {model} --corpus {training}", "--held-out")
    refused(2, f"{near} {held_out} -k 0", "-k", "at least 1")
    refused(2, f"{near} {held_out} -k 4", "--neighbours 4", "3 images")
    refused(2, f"{near} {training}/0", "--held-out", "apart")
    refused(2, f"{near} {held_out} --samples {held_out} --classes 1", "--samples")
    refused(2, f"{near} {held_out} --teacher-path x", "--features teacher")
    refused(3, f"{near} {held_out} -k 2", "--held-out", "at least 2")
    for folder in ("empty", "words", "missing"):
        refused(3, f"{near} {tmp_path / folder}", "--held-out", folder, "no images")
    write_images(tmp_path / "broken", {f"{i}.png": b"\x89PNG broken" for i in range(3)})
    refused(3, f"{near} {tmp_path / 'broken'} -k 2", "broken")
    assert not list(model.glob("look-*")), "nothing is written before all is well"


def test_a_failure_leaves_the_sheet_that_was_there(model: Path, tmp_path: Path) -> None:
    training = write_images(tmp_path / "training", random_images(0, 30))
    held_out = write_images(tmp_path / "held-out", random_images(100, 5))
    out = tmp_path / "s.png"
    words = ["neighbours", model, "--corpus", training, "--held-out", held_out, "--count", 1]
    look(out, *words)
    before = {p.name: p.read_bytes() for p in tmp_path.glob("s.*")}
    for name in random_images(20, 8):
        (training / name).write_bytes(b"damaged")
    assert main(["look", *map(str, words), "--out", str(out), "--device", "cpu"]) == 3
    assert {p.name: p.read_bytes() for p in tmp_path.glob("s.*")} == before
    assert not [p for p in tmp_path.iterdir() if "part" in p.name]

"""Bulk sampling: who makes which sample, what is kept, what is refused."""

import io
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

from gear_dist.cli.main import main
from gear_dist.errors import ConfigError, DataError, StorageError
from gear_dist.inference.bulk.plan import BulkPlan, claim, sample_key, tar_key
from gear_dist.inference.bulk.run import generate_bulk
from gear_dist.inference.bulk.tar_task import _load, decoding_step, find_finished, hash_weights
from gear_dist.inference.model_folder import open_model
from gear_dist.inference.pipeline import GearPipeline
from gear_dist.models.generator import ClassCondition
from gear_dist.storage.open import open_storage
from image_files import contents
from refusals import refused
from tiny_pair import NUM_CLASSES, make_tiny_pair

PLAN = BulkPlan(
    weights={"tokenizer": "a" * 64, "generator": "b" * 64},
    num=30,
    class_rule="per-class",
    classes=(0, 1, 2, 3),
    seed=7,
    sampling={"guidance": 1.5, "temperature": 1.0, "top_k": 5},
    image_size=16,
    samples_per_tar=8,
    device="cpu",
)
NAMES = ("bee", "cat", "dog", "elk")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bulk") / "model"
    make_tiny_pair(folder)
    return folder


@pytest.fixture(scope="module")
def plan(model: Path) -> BulkPlan:
    return PLAN._replace(weights=hash_weights(open_model(model)), step=decoding_step("cpu"))


@pytest.fixture(scope="module")
def made(model: Path, plan: BulkPlan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The samples of `plan`, made by one worker."""
    folder = tmp_path_factory.mktemp("made")
    result = generate_bulk(open_storage(str(folder)), str(model), plan, NAMES, batch=64, workers=1)
    assert result.num_made == plan.num
    return folder


def test_tars_cover_every_sample_once() -> None:
    assert PLAN.num_tars == 4
    covered = [sample for tar in range(4) for sample in PLAN.samples_of(tar)]
    assert covered == list(range(30))


def test_per_class_takes_all_classes_equally_often() -> None:
    counts = Counter(PLAN.labels(range(30)))
    assert counts == {0: 8, 1: 8, 2: 7, 3: 7}


def test_random_draws_a_class_for_each_sample_whoever_asks() -> None:
    plan = PLAN._replace(class_rule="random", num=8000)
    together = plan.labels(range(8000))
    assert [plan.labels([i])[0] for i in (0, 17, 7999)] == [together[i] for i in (0, 17, 7999)]
    counts = np.bincount(together, minlength=4)
    # Chi-square with 3 degrees of freedom: 16.3 is its 99.9 % quantile.
    assert ((counts - 2000) ** 2 / 2000).sum() < 16.3
    assert plan._replace(seed=8).labels(range(50)) != together[:50]


def test_rows_are_a_fixed_mixed_order() -> None:
    plan = PLAN._replace(num=1000)
    rows = plan.rows()
    assert sorted(rows) == list(range(1000))
    assert rows == plan._replace(seed=1).rows()
    # A tenth of them, as a split of Inception Score takes, is of all parts of the run.
    assert Counter(row // 250 for row in rows[:100]).keys() == {0, 1, 2, 3}


def test_samples_are_those_of_the_pipeline_with_all_that_repeats_them(
    made: Path, model: Path, plan: BulkPlan
) -> None:
    pair = GearPipeline.load(open_model(model), torch.device("cpu"))
    tars = [str(made / tar_key(tar)) for tar in range(plan.num_tars)]
    samples = list(webdataset.WebDataset(tars, shardshuffle=False))
    assert [s["__key__"] for s in samples] == [sample_key(i) for i in range(plan.num)]
    for i in (0, 9, 29):
        facts = json.loads(samples[i]["json"])
        assert int(samples[i]["cls"]) == facts["class"] == i % NUM_CLASSES
        assert facts["class_name"] == NAMES[i % NUM_CLASSES]
        assert facts["sampling"] == plan.sampling
        assert facts["checkpoint"] == plan.checkpoint
        image = Image.open(io.BytesIO(samples[i]["png"]))
        assert image.text["seed"] == str(facts["seed"])
        assert json.loads(image.text["sampling"]) == plan.sampling
        condition = ClassCondition(torch.tensor([facts["class"]]))
        again = pair.generate(condition, [facts["seed"]], plan.settings())[0]
        assert np.array_equal(np.asarray(image), again.permute(1, 2, 0).numpy())


def test_npz_has_every_sample_in_the_order_of_rows(made: Path, plan: BulkPlan) -> None:
    found = np.load(made / "samples.npz")
    images, labels, rows = found["arr_0"], found["arr_1"], plan.rows()
    assert (images.shape, images.dtype) == ((30, 16, 16, 3), np.uint8)
    assert labels.tolist() == plan.labels(rows)
    tars = [str(made / tar_key(tar)) for tar in range(plan.num_tars)]
    pictures = [
        np.asarray(Image.open(io.BytesIO(sample["png"])))
        for sample in webdataset.WebDataset(tars, shardshuffle=False)
    ]
    assert all(np.array_equal(images[row], pictures[i]) for row, i in enumerate(rows))


def test_what_is_there_stays_and_what_is_not_is_made(
    made: Path, model: Path, plan: BulkPlan, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(made, copy)
    storage = open_storage(str(copy))
    kept = (copy / tar_key(0)).stat().st_ino
    (copy / tar_key(1)).write_bytes((copy / tar_key(1)).read_bytes()[:-512])  # cut
    (copy / tar_key(2)).unlink()
    (copy / "records/000003.json").write_text("{}")
    (copy / "samples.npz").unlink()
    assert find_finished(storage, plan, 0) is not None
    result = generate_bulk(storage, str(model), plan, NAMES, batch=64, workers=1)
    assert result.num_made == 22
    assert contents(copy) == contents(made)
    assert (copy / tar_key(0)).stat().st_ino == kept


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_how_many_are_made_at_a_time_is_told_where_bytes_depend_on_it(
    model: Path, tmp_path: Path, dtype: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _load.cache_clear()  # a process keeps its weights in one dtype
    words = ["sample", str(model), "--num", "20", "--device", "cpu", "--dtype", dtype]
    outs = [tmp_path / "seven", tmp_path / "all"]
    for out, batch in zip(outs, ("7", "64"), strict=True):
        assert main([*words, "--out", str(out), "--batch", batch]) == 0
    equal = contents(outs[0]) == contents(outs[1])
    alike = dtype == "fp32" and decoding_step("cpu") == "compiled"
    assert equal == alike
    capsys.readouterr()
    assert main([*words, "--out", str(outs[0]), "--batch", "64"]) == (0 if alike else 2)
    assert ("sampling.batch=7, not 64" in capsys.readouterr().err) == (not alike)
    _load.cache_clear()


def test_other_settings_in_the_same_place_are_refused(made: Path, plan: BulkPlan) -> None:
    storage = open_storage(str(made))
    assert claim(storage, plan)
    other = plan._replace(seed=8, sampling=plan.sampling | {"top_k": 9})
    with refused(ConfigError, made, "seed=7", "not 8", "sampling.top_k=5", "not 9", "--out"):
        claim(storage, other)


def test_a_place_with_other_things_is_refused(plan: BulkPlan, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with refused(ConfigError, tmp_path, "thesis.tex", "--out"):
        claim(open_storage(str(tmp_path)), plan)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_refused_setting_leaves_the_place_free(
    model: Path, plan: BulkPlan, tmp_path: Path
) -> None:
    storage = open_storage(str(tmp_path / "out"))
    changed = plan._replace(weights=plan.weights | {"generator": "0" * 64})
    with refused(ConfigError, model, "weights", "--out"):
        generate_bulk(storage, str(model), changed, NAMES, batch=64, workers=1)
    assert not (tmp_path / "out/sampling.json").exists()


def test_a_worker_that_would_round_differently_makes_nothing(
    model: Path, plan: BulkPlan, tmp_path: Path
) -> None:
    """As on a cluster where one machine was without a C compiler."""
    other = {"torch": "compiled", "compiled": "torch"}[plan.step]
    storage = open_storage(str(tmp_path / "out"))
    with refused(ConfigError, other, plan.step, "C compiler", "--out"):
        generate_bulk(storage, str(model), plan._replace(step=other), NAMES, batch=64, workers=1)
    assert not (tmp_path / "out/sampling.json").exists()


def test_a_disk_that_refuses_loses_nothing(
    made: Path, model: Path, plan: BulkPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gear_dist.storage.local import FileStorage

    storage = open_storage(str(tmp_path / "out"))
    whole = FileStorage.writer

    def full(self: FileStorage, key: str):
        if key == tar_key(2):
            raise StorageError(f"{key}: No space left on device")
        return whole(self, key)

    monkeypatch.setattr(FileStorage, "writer", full)
    with refused(StorageError, tar_key(2), "No space left"):
        generate_bulk(storage, str(model), plan, NAMES, batch=64, workers=1)
    monkeypatch.undo()
    assert generate_bulk(storage, str(model), plan, NAMES, batch=64, workers=1).num_made == 14
    assert contents(tmp_path / "out") == contents(made)


def test_a_damaged_tar_is_told_where_the_npz_is_made(
    made: Path, model: Path, plan: BulkPlan, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(made, copy)
    tar = copy / tar_key(1)
    data = bytearray(tar.read_bytes())
    place = data.index(b"IDAT") + 20
    data[place : place + 40] = bytes(40)
    tar.write_bytes(data)
    (copy / "samples.npz").unlink()
    with refused(DataError, tar_key(1), ".png"):
        generate_bulk(open_storage(str(copy)), str(model), plan, NAMES, batch=64, workers=1)
    assert not (copy / "samples.npz").exists()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--num", "3"], ["--num", "--out"]),
        (["--num", "3", "--count", "2"], ["--count", "--num"]),
        (["--workers", "2"], ["--workers", "--num"]),
        (["--no-npz"], ["--no-npz", "--num"]),
        (["--num", "3", "--per-class", "2"], ["--per-class", "--num"]),
        (["--num", "3", "--out", "s3://"], ["s3://"]),
        (["--out", "picture.jpg"], ["--out", "picture.jpg", ".png"]),
    ],
)
def test_options_that_do_not_go_together(
    words: list[str], named: list[str], model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample", str(model), *words]) == 2
    line = capsys.readouterr().err
    assert all(word in line for word in named), line

"""What `gear-dist shard` removes and writes over: its own corpus, and nothing else."""

import io
import shutil
from pathlib import Path

import pytest
from PIL import Image

from gear_cluster.demo.object_store import StoreEndpoint
from gear_dist.cli.main import main
from gear_dist.data.manifest import load_manifest, load_samples
from gear_dist.storage.base import Storage
from gear_dist.storage.local import FileStorage
from gear_dist.storage.open import open_storage
from loader_cases import tar_of
from refusals import has_word


def jpeg(seed):
    stream = io.BytesIO()
    Image.new("RGB", (40, 36), (seed * 9 % 256, seed * 5 % 256, 99)).save(stream, "JPEG")
    return stream.getvalue()


@pytest.fixture
def photos(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(6):
            (tmp_path / "photos" / name / f"{i}.jpg").write_bytes(jpeg(i + 50 * (name == "dog")))
    return tmp_path / "photos"


def shard(source, destination, *options):
    words = ["shard", str(source), str(destination), "--workers", "1", "--shard-samples", "4"]
    return main([*words, "--validation-share", "0", *options])


def everything(storage: Storage) -> dict[str, bytes]:
    return {item.key: storage.read(item.key) for item in storage.list()}


@pytest.fixture(params=["file", "s3"])
def place(request, tmp_path, object_store: StoreEndpoint, monkeypatch):
    for name, value in object_store.environment().items():
        monkeypatch.setenv(name, value)
    if request.param == "file":
        return f"file://{tmp_path}/out"
    return f"s3://gear-tests-destination/{tmp_path.name}"


@pytest.mark.parametrize("key", ["shards/000001.tar", "shards/readme.txt", "manifest/mine.json"])
@pytest.mark.parametrize("option", [(), ("--overwrite",)])
def test_a_place_with_files_of_others_is_refused(place, photos, key, option):
    storage = open_storage(f"{place}/train")
    storage.write(key, b"somebody's")
    before = everything(storage)
    assert shard(photos, place, *option) == 3
    assert everything(storage) == before


def test_what_is_put_beside_a_corpus_later_stays(place, photos):
    storage = open_storage(f"{place}/train")
    assert shard(photos, place) == 0
    num_shards = len(load_manifest(storage).shards)
    strangers = {"shards/readme.txt": b"a", "shards/old/000001.tar": b"b", "notes.txt": b"c"}
    for key, data in strangers.items():
        storage.write(key, data)
    assert shard(photos, place, "--overwrite", "--shard-samples", "12") == 0
    assert len(load_manifest(storage).shards) < num_shards
    found = everything(storage)
    assert {key: found[key] for key in strangers} == strangers
    ours = [key for key in found if key.startswith("shards/0")]
    assert len(ours) == len(load_manifest(storage).shards), "shards of the longer one are gone"


def test_an_overwrite_that_was_killed_is_taken_up(tmp_path, photos, monkeypatch):
    """Between the removal of the old corpus and the new plan nothing but shards may be there."""
    out = f"file://{tmp_path}/out"
    storage = open_storage(f"{out}/train")
    assert shard(photos, out) == 0
    delete = FileStorage.delete
    deleted = []

    def dying(self, key):
        if len(deleted) == 2:
            raise KeyboardInterrupt
        deleted.append(key)
        delete(self, key)

    monkeypatch.setattr(FileStorage, "delete", dying)
    assert shard(photos, out, "--overwrite", "--seed", "5") == 130
    monkeypatch.undo()
    assert storage.exists("manifest/plan.json")
    assert shard(photos, out, "--overwrite", "--seed", "5") == 0
    assert load_manifest(storage).info.num_samples == 12


@pytest.mark.parametrize(
    ("source", "destination"),
    [
        ("o/train/shards", "o"),
        ("o", "o"),
        ("photos", "photos"),
        ("photos", "photos/cat"),
        ("o/train", "o"),
    ],
)
def test_source_and_destination_that_overlap_are_refused(
    tmp_path, photos, monkeypatch, source, destination
):
    monkeypatch.chdir(tmp_path)
    assert shard(photos, "o") == 0
    storage = FileStorage(tmp_path)
    before = everything(storage)
    for kind in ("auto", "webdataset", "folder"):
        assert shard(source, destination, "--overwrite", "--kind", kind) == 2
    assert everything(storage) == before


def test_a_link_does_not_hide_an_overlap(tmp_path, photos):
    (tmp_path / "link").symlink_to(photos)
    assert shard(tmp_path / "link", photos / "out") == 2


def test_a_corpus_in_a_corpus_is_refused(tmp_path, photos):
    assert shard(photos, tmp_path / "o") == 0
    assert shard(photos, tmp_path / "o/train") == 2


def test_a_file_may_lie_beside_its_shards(tmp_path):
    Path(tmp_path / "a.tar").write_bytes(tar_of({f"{i}.jpg": jpeg(i) for i in range(4)}))
    assert shard(tmp_path / "a.tar", tmp_path) == 0
    assert (tmp_path / "a.tar").is_file()


# -- the other split of a corpus that is replaced ---------------------------------------------


def images_of(place, split):
    storage = open_storage(f"{place}/{split}")
    return set(load_samples(storage)["xxh3"].to_pylist())


@pytest.fixture
def split_photos(photos):
    """With a validation split of its own."""
    for name in ("cat", "dog"):
        (photos / "train" / name).mkdir(parents=True)
        (photos / "val" / name).mkdir(parents=True)
        for i, path in enumerate(sorted((photos / name).iterdir())):
            path.rename(photos / ("val" if i < 2 else "train") / name / path.name)
        (photos / name).rmdir()
    return photos


def lose_validation(photos, how):
    """Options of a plan whose train has the images that the old validation has."""
    if how == "share":
        return ("--validation-share", "0")
    for name in ("cat", "dog"):
        for path in (photos / "val" / name).iterdir():
            path.rename(photos / "train" / name / f"former-{path.name}")
        (photos / "val" / name).rmdir()
    (photos / "val").rmdir()
    return () if how == "lost" else ("--validation-share", "0.2")


@pytest.mark.parametrize("how", ["share", "lost"])
def test_overwrite_removes_the_validation_that_the_new_plan_does_not_have(
    place, photos, request, how, capsys
):
    if how == "lost":
        request.getfixturevalue("split_photos")
        assert shard(photos, place) == 0
    else:
        assert shard(photos, place, "--validation-share", "0.3") == 0
    validation = open_storage(f"{place}/validation")
    old = images_of(place, "validation")
    assert old
    options = lose_validation(photos, how)
    capsys.readouterr()
    assert shard(photos, place, *options) == 3
    assert has_word(capsys.readouterr().err, "--overwrite")
    assert images_of(place, "validation") == old, "refused before anything is removed"
    validation.write("shards/readme.txt", b"mine")
    assert shard(photos, place, "--overwrite", *options) == 0
    assert everything(validation) == {"shards/readme.txt": b"mine"}
    assert old <= images_of(place, "train")
    assert shard(photos, place, *options) == 0, "the same command recognises what it has made"


def test_overwrite_removes_the_validation_of_a_source_that_is_too_small(tmp_path, photos, capsys):
    assert shard(photos, tmp_path / "o", "--validation-share", "0.3") == 0
    (tmp_path / "one.tar").write_bytes(tar_of({f"{i}.jpg": jpeg(i) for i in range(3)}))
    words = (tmp_path / "one.tar", tmp_path / "o", "--validation-share", "0.3")
    assert shard(*words) == 3
    assert shard(*words, "--overwrite") == 0
    assert not everything(FileStorage(tmp_path / "o/validation"))


def test_overwrite_removes_what_a_run_that_failed_has_left_of_validation(tmp_path, split_photos):
    for path in (split_photos / "val").rglob("*.jpg"):
        path.write_bytes(b"no image")
    assert shard(split_photos, tmp_path / "o", "--max-bad-share", "1") == 3
    validation = FileStorage(tmp_path / "o/validation")
    assert everything(validation)
    shutil.rmtree(split_photos / "val")
    assert shard(split_photos, tmp_path / "o") == 3
    assert shard(split_photos, tmp_path / "o", "--overwrite") == 0
    assert not everything(validation)


def test_a_validation_of_others_stays(tmp_path, photos):
    others = FileStorage(tmp_path / "o/validation")
    others.write("shards/000000.tar", tar_of({"a.jpg": jpeg(1)}))
    before = everything(others)
    assert shard(photos, tmp_path / "o", "--overwrite") == 0
    assert everything(others) == before


def test_an_overwrite_that_fails_in_train_leaves_no_old_validation(tmp_path, photos):
    """Half of the new train may be the old validation."""
    options = ("--validation-share", "0.3")
    assert shard(photos, tmp_path / "o", *options) == 0
    for path in photos.rglob("*.jpg"):
        path.write_bytes(b"no image")
    assert shard(photos, tmp_path / "o", *options, "--overwrite") == 3
    assert not FileStorage(tmp_path / "o/validation").exists("manifest/dataset.json")


def test_an_overwrite_without_its_own_duplicates(tmp_path, photos):
    """What it reads of the old corpus it reads before that is removed."""
    (photos / "dog/0.jpg").write_bytes(jpeg(0))
    options = ("--validation-share", "0.3")
    assert shard(photos, tmp_path / "o", *options) == 0
    again = ("--without-duplicates-of", str(tmp_path / "o"), "--overwrite")
    assert shard(photos, tmp_path / "o", *options, *again) == 0
    splits = [images_of(tmp_path / "o", split) for split in ("train", "validation")]
    assert sum(map(len, splits)) == 11
    assert not splits[0] & splits[1]


def test_another_validation_is_refused_before_train_is_made(tmp_path, photos, capsys):
    options = ("--validation-share", "0.3")
    assert shard(photos, tmp_path / "o", *options) == 0
    shutil.rmtree(tmp_path / "o/train")
    assert shard(photos, tmp_path / "o", *options, "--seed", "5") == 3
    error = capsys.readouterr().err
    assert has_word(error, "validation")
    assert has_word(error, "--overwrite")
    assert not (tmp_path / "o/train").exists()
    assert shard(photos, tmp_path / "o", *options) == 0

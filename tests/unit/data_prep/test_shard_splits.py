"""Which image lands in which split and class, of sources as people have them."""

import io
import json
import os
import unicodedata
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from PIL import Image

from gear_dist.cli.main import main
from gear_dist.data.manifest import load_manifest, load_samples
from gear_dist.data.split_names import folder_split, split_of
from gear_dist.storage.local import FileStorage
from loader_cases import tar_of
from refusals import has_word


def jpeg(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).resize((40, 36)).save(stream, "JPEG")
    return stream.getvalue()


def png_of(seed):
    stream = io.BytesIO()
    Image.open(io.BytesIO(jpeg(seed))).save(stream, "PNG")
    return stream.getvalue()


def put(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def put_tree(root, *folders, count=3):
    for place, folder in enumerate(folders):
        for i in range(count):
            put(root / folder / f"{place}-{i}.jpg", jpeg(100 * place + i))


def put_parquet(path, labels, name="label", first=0):
    images = [{"bytes": jpeg(first + i), "path": f"{first + i}.JPEG"} for i in range(len(labels))]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": images, name: labels}), path)


class Sharded:
    """What `gear-dist shard` made, by split."""

    def __init__(self, out, capsys):
        self.summary = json.loads(capsys.readouterr().out)
        self.classes, self.counts = (), {}
        for split in self.summary["splits"]:
            storage = FileStorage(out / split)
            self.classes = load_manifest(storage).info.classes
            rows = load_samples(storage)["class_index"].to_pylist()
            self.counts[split] = dict(Counter(rows))


@pytest.fixture
def shard(tmp_path, capsys):
    def run(source, *options):
        out = tmp_path / f"out-{source.name}"
        words = ["shard", str(source), str(out), "--workers", "1", "--json", *options]
        code = main(words)
        if code:
            assert not list(out.rglob("*.tar")), "refused before a shard was made"
            return code, capsys.readouterr().err
        return code, Sharded(out, capsys)

    return run


# -- folders --------------------------------------------------------------------------------


def test_flat_validation_needs_labels(tmp_path, shard):
    root = tmp_path / "in"
    put_tree(root, "train/n01443537", "train/n02124075", count=6)
    for i in range(6):
        put(root / f"val/ILSVRC2012_val_{i + 1:08d}.JPEG", jpeg(900 + i))
    code, error = shard(root)
    assert code == 3
    assert "--labels" in error
    labels = tmp_path / "labels.txt"
    labels.write_text("n02124075\n" * 5 + "n01443537\n")
    code, found = shard(root, "--labels", str(labels))
    assert code == 0
    assert found.counts == {"train": {0: 6, 1: 6}, "validation": {1: 5, 0: 1}}


def test_flat_images_beside_class_folders_of_validation_are_refused(tmp_path, shard):
    put_tree(tmp_path / "in", "train/a", "val/a", "val")
    assert shard(tmp_path / "in")[0] == 3


@pytest.mark.parametrize("folders", [["val/images"], ["val/a", "val/c"]])
def test_classes_that_only_validation_has_are_refused(tmp_path, shard, folders):
    put_tree(tmp_path / "in", "train/a", "train/b", *folders)
    code, error = shard(tmp_path / "in")
    assert code == 3
    assert folders[-1].removeprefix("val/") in error


@pytest.mark.parametrize(
    ("train", "validation"), [("Train", "Val"), ("train2017", "val2017"), ("training", "VALID")]
)
def test_split_folders_in_other_words(tmp_path, shard, train, validation):
    put_tree(tmp_path / "in", f"{train}/a", f"{train}/b", f"{validation}/a")
    code, found = shard(tmp_path / "in")
    assert code == 0
    assert found.classes == ("a", "b")
    assert found.counts == {"train": {0: 3, 1: 3}, "validation": {0: 3}}


@pytest.mark.parametrize(
    "folders",
    [["val/a", "val/b"], ["Train/a", "train/a"], ["train/a", "val/a", "valid/a"], ["val/a", "b"]],
)
def test_splits_that_contradict_each_other_are_refused(tmp_path, shard, folders):
    put_tree(tmp_path / "in", *folders)
    assert shard(tmp_path / "in")[0] == 3


def test_validation_that_is_a_link_to_train_is_refused(tmp_path, shard):
    put_tree(tmp_path / "in", "train/a", "train/b")
    os.symlink("train", tmp_path / "in" / "val")
    assert shard(tmp_path / "in")[0] == 3


def test_what_is_in_no_split_is_told_of(tmp_path, shard):
    put_tree(tmp_path / "in", "train/a", "train/b", "val/a", "test/a", "extra", "", count=2)
    code, found = shard(tmp_path / "in")
    assert code == 0
    assert found.counts == {"train": {0: 2, 1: 2}, "validation": {0: 2}}
    assert sum("2 images" in note for note in found.summary["notes"]) == 3


def test_without_train_a_folder_called_test_is_a_class(tmp_path, shard):
    put_tree(tmp_path / "in", "control", "test")
    _, found = shard(tmp_path / "in", "--validation-share", "0")
    assert found.classes == ("control", "test")


def test_two_unicode_forms_of_a_name_are_one_class(tmp_path, shard):
    forms = [unicodedata.normalize(form, "Malm\u00f6") for form in ("NFC", "NFD")]
    put_tree(tmp_path / "in", f"train/{forms[0]}", f"val/{forms[1]}")
    _, found = shard(tmp_path / "in")
    assert found.classes == (forms[0],)
    assert found.counts == {"train": {0: 3}, "validation": {0: 3}}


def test_names_that_differ_by_case_are_warned_of(tmp_path, shard):
    put_tree(tmp_path / "in", "Cat", "cat", "dog")
    _, found = shard(tmp_path / "in", "--validation-share", "0")
    assert found.classes == ("Cat", "cat", "dog")
    assert [note for note in found.summary["notes"] if "Cat and cat" in note]


def test_links_to_nothing_are_told_of_and_archives_companions_are_not_classes(tmp_path, shard):
    put_tree(tmp_path / "in", "cat", "dog", "__MACOSX/cat")
    os.symlink("nowhere.jpg", tmp_path / "in/dog/gone.jpg")
    _, found = shard(tmp_path / "in", "--validation-share", "0")
    assert found.counts["train"] == {0: 3, 1: 3}
    assert [note for note in found.summary["notes"] if "dog/gone.jpg" in note]


def test_splits_one_folder_further_down_are_refused(tmp_path, shard):
    put_tree(tmp_path / "in", "ds/train/cat", "ds/val/cat")
    code, error = shard(tmp_path / "in")
    assert code == 3
    assert "ds/" in error


@pytest.mark.parametrize(
    ("names", "pictures"),
    [
        (("0.jpg", "0.mask.png", "1.jpg"), ("0.jpg", "1.jpg")),
        (("0.png", "0.jpg"), ("0.jpg",)),
        (("0.webp", "0.PNG", "0.tif"), ("0.PNG",)),
        (("0.mask.png", "0.mask.big.png", "0.jpg"), ("0.jpg",)),
        (("photo.1.jpg", "photo.jpg", "photo.1.seg.png"), ("photo.1.jpg", "photo.jpg")),
        (("a.b.jpg", "a.c.jpg", "b.jpg"), ("a.b.jpg", "a.c.jpg", "b.jpg")),
    ],
)
def test_images_of_one_name_are_one_sample(tmp_path, shard, names, pictures):
    for i, name in enumerate(names):
        put(tmp_path / "in/cat" / name, jpeg(i))
    put(tmp_path / "in/dog" / names[0], jpeg(90))
    code, found = shard(tmp_path / "in", "--validation-share", "0")
    assert code == 0
    rows = load_samples(FileStorage(tmp_path / "out-in/train"))["xxh3"].to_pylist()
    expected = [(tmp_path / "in/cat" / name).read_bytes() for name in pictures] + [jpeg(90)]
    if all(name.endswith("jpg") for name in pictures):
        assert sorted(rows) == sorted(map(xxhash.xxh3_128_hexdigest, expected))
    assert found.counts["train"] == {0: len(pictures), 1: 1}
    num_further = len(names) - len(pictures)
    with_further = found.summary["splits"]["train"]["odd"].get("extra-image", 0)
    assert (with_further > 0) == (num_further > 0)
    notes = [note for note in found.summary["notes"] if "extra-image" in note]
    told = [note for note in notes if has_word(note, str(num_further))]
    assert len(told) == (num_further > 0)
    assert not [note for note in found.summary["notes"] if "no images" in note]


def test_a_policy_decides_on_pictures_with_masks(tmp_path, shard):
    put_tree(tmp_path / "in", "cat", "dog")
    put(tmp_path / "in/cat/0-0.mask.png", jpeg(50))
    code, found = shard(tmp_path / "in", "--validation-share", "0", "--policy", "extra-image=skip")
    assert code == 0
    assert found.counts["train"] == {0: 2, 1: 3}
    assert found.summary["splits"]["train"]["skipped"] == 1


def test_masks_of_validation_need_no_label(tmp_path, shard):
    put_tree(tmp_path / "in", "train/a", "train/b", "val")
    put(tmp_path / "in/val/2-0.mask.png", jpeg(50))
    labels = tmp_path / "labels.txt"
    labels.write_text("a\nb\nb\n")
    _, found = shard(tmp_path / "in", "--labels", str(labels))
    assert found.counts["validation"] == {0: 1, 1: 2}


@pytest.mark.parametrize(
    ("folders", "needles"),
    [
        (["images", "masks"], ["images", "masks"]),
        (["train/images", "train/Masks", "val/images"], ["images", "Masks"]),
        (["cat", "SegmentationClass"], ["SegmentationClass"]),
        (["cat/images", "cat/masks", "dog/images", "dog/masks"], ["cat/masks", "dog/masks"]),
        (["photos/cat", "photos/dog"], ["1", "photos", "cat", "dog", "SOURCE", "{in}/photos"]),
        (["a/photos/cat", "a/photos/dog"], ["{in}/a/photos"]),
        (["photos/cat", "photos/dog", "photos"], ["{in}/photos"]),
        (["train/photos/cat", "train/photos/dog"], ["photos", "cat", "dog"]),
        (["2020/cat", "2020/dog", "2021/cat", "2021/dog"], ["2", "2020", "2021", "cat", "dog"]),
        (
            ["train_set/cat", "train_set/dog", "val_set/cat", "val_set/dog"],
            ["train_set/ to train/", "val_set/ to validation/"],
        ),
        (["my-train", "my-val"], ["my-train/ to train/", "my-val/ to validation/"]),
        (["cat/train", "cat/val", "dog/train", "dog/val"], ["train/CLASS", "val/CLASS"]),
    ],
)
def test_folders_that_are_probably_no_classes_are_warned_of(tmp_path, shard, folders, needles):
    put_tree(tmp_path / "in", *folders)
    code, found = shard(tmp_path / "in")
    assert code == 0
    [line] = [note for note in found.summary["notes"] if "WARNING" in note]
    for needle in needles:
        assert has_word(line, needle.replace("{in}", (tmp_path / "in").as_uri()))


@pytest.mark.parametrize(
    "folders",
    [
        ["cat", "dog"],
        ["train/cat", "train/dog", "val/cat"],
        ["cat", "cat/indoors", "cat/outdoors", "dog"],
        ["train/n01/images", "train/n02/images"],
        ["control", "test"],
        ["pictures of cats"],
    ],
)
def test_folders_that_are_classes_are_not_warned_of(tmp_path, shard, folders):
    put_tree(tmp_path / "in", *folders)
    _, found = shard(tmp_path / "in")
    assert not [note for note in found.summary["notes"] if "WARNING" in note]


def test_files_that_are_left_out_are_told_by_their_suffix(tmp_path, shard):
    put_tree(tmp_path / "in", "cat", "dog")
    for name in ("cat/a.heic", "cat/b.HEIC", "dog/c.avif", "dog/notes.md", "cat/alone.txt"):
        put(tmp_path / "in" / name, b"x")
    put(tmp_path / "in/cat/0-0.txt", b"a caption")
    put(tmp_path / "in/cat/0-0.json", b"{}")
    _, found = shard(tmp_path / "in", "--validation-share", "0")
    [note] = [note for note in found.summary["notes"] if ".heic" in note]
    for words in ("WARNING", "5 files", "2 .heic", "cat/a.heic", "1 .avif", "1 .md", "1 .txt"):
        assert has_word(note, words)


def test_jfif_is_another_name_of_jpeg(tmp_path, shard):
    put_tree(tmp_path / "in", "cat", "dog")
    put(tmp_path / "in/cat/a.jfif", jpeg(50))
    put(tmp_path / "in/cat/b.jfif", png_of(51))
    _, found = shard(tmp_path / "in", "--validation-share", "0")
    assert found.counts["train"] == {0: 5, 1: 3}
    assert found.summary["splits"]["train"]["odd"] == {"mislabelled": 1}


@pytest.mark.parametrize("folder", ["", "train/"])
@pytest.mark.parametrize("table", ["labels.csv", "metadata.jsonl"])
def test_flat_pictures_beside_a_table_are_refused_with_the_way_out(tmp_path, shard, folder, table):
    put_tree(tmp_path / "in", folder)
    put(tmp_path / "in" / folder / table, b"x")
    code, error = shard(tmp_path / "in")
    assert code == 3
    for words in (f"{folder}{table}", "3", f"{folder}0-0.jpg", "CLASS/NAME.jpg", "NAME.txt"):
        assert has_word(error, words)


def test_a_tree_of_unread_formats_alone_says_so(tmp_path, shard):
    put(tmp_path / "in/cat/a.heic", b"x")
    code, error = shard(tmp_path / "in")
    assert code == 3
    assert has_word(error, "1 .heic")


# -- tables ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "name", "classes", "counts"),
    [
        (["cat", "dog", "cat", None], "label", ("cat", "dog"), {0: 2, 1: 1, -1: 1}),
        ([0.0, 1.0, 2.0, None], "label", ("0", "1", "2"), {0: 1, 1: 1, 2: 1, -1: 1}),
        ([True, False, True, True], "label", ("0", "1"), {0: 1, 1: 3}),
        ([0, 1, 0, 1], "labels", ("0", "1"), {0: 2, 1: 2}),
        (["10", "2", "2", "10"], "class", tuple(map(str, range(11))), {10: 2, 2: 2}),
    ],
)
def test_class_columns_of_many_types(tmp_path, shard, labels, name, classes, counts):
    put_parquet(tmp_path / "in/a.parquet", labels, name)
    code, found = shard(tmp_path / "in", "--validation-share", "0")
    assert code == 0
    assert (found.classes, found.counts["train"]) == (classes, counts)


def test_a_column_of_categories_has_classes(tmp_path, shard):
    values = pa.array(["dog", "cat", "cat", None]).dictionary_encode()
    put_parquet(tmp_path / "in/a.parquet", values)
    _, found = shard(tmp_path / "in", "--validation-share", "0")
    assert found.classes == ("cat", "dog")
    assert found.counts["train"] == {0: 2, 1: 1, -1: 1}


def test_names_are_the_same_in_all_files_and_splits(tmp_path, shard):
    put_parquet(tmp_path / "in/train-0.parquet", ["dog"] * 3)
    put_parquet(tmp_path / "in/train-1.parquet", ["cat"] * 2, first=10)
    put_parquet(tmp_path / "in/validation-0.parquet", ["dog"], first=20)
    _, found = shard(tmp_path / "in")
    assert found.counts == {"train": {0: 2, 1: 3}, "validation": {1: 1}}
    put_parquet(tmp_path / "in2/train-0.parquet", ["dog"] * 3)
    put_parquet(tmp_path / "in2/validation-0.parquet", ["owl"], first=20)
    assert shard(tmp_path / "in2")[0] == 3


def test_names_of_a_column_are_told_apart_as_those_of_folders(tmp_path, shard):
    forms = [unicodedata.normalize(form, "Malm\u00f6") for form in ("NFC", "NFD")]
    put_parquet(tmp_path / "in/a.parquet", [*forms, "Cat", "cat"])
    _, found = shard(tmp_path / "in", "--validation-share", "0")
    assert found.classes == ("Cat", forms[0], "cat")
    assert [note for note in found.summary["notes"] if "Cat and cat" in note]


def test_numbers_of_one_file_may_be_whole_floats(tmp_path, shard):
    put_parquet(tmp_path / "in/train-0.parquet", [0, 1, 2])
    put_parquet(tmp_path / "in/validation-0.parquet", [1.0, None, 2.0], first=9)
    code, found = shard(tmp_path / "in")
    assert code == 0
    assert found.counts["validation"] == {1: 1, -1: 1, 2: 1}


def test_labels_name_classes_with_blanks(tmp_path, shard):
    put_tree(tmp_path / "in", "train/hot dog", "train/cat")
    put_tree(tmp_path / "in", "val")
    (tmp_path / "labels.txt").write_text("hot dog\ncat\nhot dog\n")
    _, found = shard(tmp_path / "in", "--labels", str(tmp_path / "labels.txt"))
    assert found.counts["validation"] == {1: 2, 0: 1}


def test_lists_are_no_classes(tmp_path, shard):
    put_parquet(tmp_path / "in/a.parquet", [[1], [2], [1, 2]], "labels")
    code, found = shard(tmp_path / "in", "--validation-share", "0")
    assert (code, found.classes) == (0, ())
    assert [note for note in found.summary["notes"] if "--class-column" in note]
    other = (tmp_path / "in").rename(tmp_path / "named")
    code, error = shard(other, "--class-column", "labels")
    assert code == 2
    assert "labels" in error


@pytest.mark.parametrize("second", [{"img": True}, {"labels": ["a", "b"]}])
def test_files_of_other_columns_are_refused(tmp_path, shard, second):
    put_parquet(tmp_path / "in/a.parquet", [0, 1])
    if "labels" in second:
        put_parquet(tmp_path / "in/b.parquet", second["labels"])
    else:
        pq.write_table(pa.table({"img": [jpeg(9)], "label": [1]}), tmp_path / "in/b.parquet")
    code, error = shard(tmp_path / "in")
    assert code == 3
    assert "b.parquet" in error


# -- tars and test splits -------------------------------------------------------------------


def put_tar(path, names, first=0, label=None):
    members = {}
    for i, name in enumerate(names):
        members[f"{name}.jpg"] = jpeg(first + i)
        if label is not None:
            members[f"{name}.cls"] = str(label).encode()
    put(path, tar_of(members))


def test_tars_that_are_classes(tmp_path, shard):
    for split in ("train", "val"):
        for number, name in enumerate(("n01440764", "n01443537")):
            names = [f"{name}_{i}" for i in range(4)]
            put_tar(tmp_path / f"in/{split}/{name}.tar", names, 100 * number)
    code, found = shard(tmp_path / "in")
    assert code == 0
    assert found.classes == ("n01440764", "n01443537")
    assert found.counts == {"train": {0: 4, 1: 4}, "validation": {0: 4, 1: 4}}


@pytest.mark.parametrize("label", [None, 1])
def test_tars_that_are_no_classes(tmp_path, shard, label):
    """Their samples say their class, or are not called after them."""
    for number, name in enumerate(("a", "b")):
        names = [f"{name}_{i}" if label else f"{number}{i}" for i in range(4)]
        put_tar(tmp_path / f"in/{name}.tar", names, 100 * number, label)
    _, found = shard(tmp_path / "in", "--validation-share", "0")
    assert found.counts["train"] == {-1 if label is None else label: 8}


def test_joined_tars_are_no_half_of_a_corpus(tmp_path, capsys):
    for number in range(2):
        put_tar(tmp_path / f"{number}.tar", [f"{number}{i}" for i in range(20)], 50 * number)
    joined = b"".join((tmp_path / f"{number}.tar").read_bytes() for number in range(2))
    put(tmp_path / "in/a.tar", joined)
    assert main(["shard", str(tmp_path / "in"), str(tmp_path / "out"), "--workers", "1"]) == 3
    assert "a.tar" in capsys.readouterr().err


def test_test_splits_do_not_become_training_data(tmp_path, shard):
    put_parquet(tmp_path / "in/data/train-00000-of-00001.parquet", [0, 1, 2] * 2)
    put_parquet(tmp_path / "in/data/validation-00000-of-00001.parquet", [0, 1, 2], first=10)
    put_parquet(tmp_path / "in/data/test-00000-of-00001.parquet", [-1] * 6, first=20)
    _, found = shard(tmp_path / "in")
    assert {split: sum(n.values()) for split, n in found.counts.items()} == {
        "train": 6,
        "validation": 3,
    }
    put_tar(tmp_path / "tars/train-0000.tar", ["0", "1", "2"])
    put_tar(tmp_path / "tars/test-0000.tar", ["3", "4"], 50)
    _, found = shard(tmp_path / "tars", "--validation-share", "0")
    assert sum(found.counts["train"].values()) == 3
    assert [note for note in found.summary["notes"] if "test-0000.tar" in note]


def test_a_single_file_is_what_it_is_given_as(tmp_path, shard):
    put_tar(tmp_path / "in/val-0.tar", ["0", "1", "2"])
    assert shard(tmp_path / "in")[0] == 3
    source = tmp_path / "in/val-0.tar"
    _, found = shard(source, "--validation-share", "0")
    assert sum(found.counts["train"].values()) == 3


def test_numbers_that_only_validation_has_are_warned_of(tmp_path, shard):
    put_parquet(tmp_path / "in/train-0.parquet", [0, 1])
    put_parquet(tmp_path / "in/validation-0.parquet", [0, 5], first=9)
    _, found = shard(tmp_path / "in")
    assert len(found.summary["warnings"]) == 1


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("data/train-00000-of-00001.parquet", "train"),
        ("coco_val2017.tar", "validation"),
        ("Test/0.tar", "test"),
        ("latest-contest/0.tar", "train"),
        ("interval/0.tar", "train"),
        ("train/test-tubes.tar", "train"),
        ("my-val/train-000.tar", "validation"),
    ],
)
def test_splits_by_name(name, split):
    assert split_of(name) == split


def test_folders_that_are_no_splits():
    assert [folder_split(n) for n in ("2017", "", "values", "trainer", "Valid")] == [
        "",
        "",
        "",
        "",
        "validation",
    ]


@pytest.mark.parametrize("member", ["label", "class_id"])
def test_a_class_in_a_json_is_told_of(tmp_path, shard, member):
    members = {"0.jpg": jpeg(1), "0.json": json.dumps({member: 3, "caption": "x"}).encode()}
    put(tmp_path / "in/a.tar", tar_of(members))
    _, found = shard(tmp_path / "in")
    [note] = [note for note in found.summary["notes"] if "KEY.json" in note]
    for words in ("WARNING", "a.tar", member, "3", "KEY.cls"):
        assert has_word(note, words)
    put(tmp_path / "in2/a.tar", tar_of({**members, "0.cls": b"3"}))
    _, found = shard(tmp_path / "in2")
    assert not [note for note in found.summary["notes"] if "KEY.json" in note]


def test_members_that_are_no_neighbours_are_refused_with_the_cause(tmp_path, capsys):
    images = {f"{i}.jpg": jpeg(i) for i in range(3)}
    put(tmp_path / "in/a.tar", tar_of({**images, **{f"{i}.cls": b"1" for i in range(3)}}))
    words = ["shard", str(tmp_path / "in"), str(tmp_path / "out"), "--workers", "1"]
    assert main(words) == 3
    error = capsys.readouterr().err
    for words in ("a.tar/0", "KEY.cls", "neighbours"):
        assert has_word(error, words)


def test_a_class_file_with_text_is_refused_with_its_value(tmp_path, capsys):
    put(tmp_path / "in/a.tar", tar_of({"0.jpg": jpeg(1), "0.cls": b"cat\n", "1.jpg": jpeg(2)}))
    words = ["shard", str(tmp_path / "in"), str(tmp_path / "out"), "--workers", "1"]
    assert main(words) == 3
    error = capsys.readouterr().err
    for words in ("a.tar/0", "'cat'", "KEY.cls", "--classes"):
        assert has_word(error, words)


# -- which kind a source is -----------------------------------------------------------------


def test_a_table_beside_pictures_does_not_decide(tmp_path, shard):
    put_tree(tmp_path / "in", "a", "b")
    (tmp_path / "in/metadata.csv").write_text("url,caption\nhttp://127.0.0.1/x.jpg,x\n")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "in/notes.parquet")
    _, found = shard(tmp_path / "in", "--validation-share", "0")
    assert found.summary["kind"] == "folder"
    assert found.counts["train"] == {0: 3, 1: 3}
    assert [note for note in found.summary["notes"] if "metadata.csv" in note]


def test_tables_beside_tars_do_not_decide(tmp_path, shard):
    put_tar(tmp_path / "in/00000.tar", ["0", "1"])
    pq.write_table(pa.table({"x": [1]}), tmp_path / "in/00000.parquet")
    _, found = shard(tmp_path / "in", "--validation-share", "0")
    assert found.summary["kind"] == "webdataset"
    assert [note for note in found.summary["notes"] if "00000.parquet" in note]


def test_pictures_and_tars_are_asked_about(tmp_path, shard):
    put_tree(tmp_path / "in", "a", "b")
    put_tar(tmp_path / "in/x.tar", ["0", "1"])
    code, error = shard(tmp_path / "in")
    assert code == 2
    assert "--kind" in error
    assert shard(tmp_path / "in", "--kind", "folder")[0] == 0


def test_classes_without_an_image_are_told(tmp_path, shard):
    """Numbers that are none, and folders all of whose images are bad."""
    put_parquet(tmp_path / "in/a.parquet", [5.0, 4.0, 1000.0])
    code, found = shard(tmp_path / "in", "--validation-share", "0")
    assert code == 0
    assert len(found.classes) == 1001
    assert any("998 of 1,001" in line for line in found.summary["splits"]["train"]["warnings"])


def test_folders_that_lost_their_images_are_told(tmp_path, shard):
    put_tree(tmp_path / "in", "cat", "dog")
    put(tmp_path / "in/owl/0.jpg", b"no image")
    code, found = shard(tmp_path / "in", "--validation-share", "0", "--max-bad-share", "0.5")
    assert code == 0
    warnings = found.summary["splits"]["train"]["warnings"]
    assert [line for line in warnings if "1 of 3 classes" in line and "owl" in line]


@pytest.mark.parametrize("name", ["category", "class_id", "coarse_label"])
def test_usual_class_columns(tmp_path, shard, name):
    put_parquet(tmp_path / "in/a.parquet", [0, 1], name)
    code, found = shard(tmp_path / "in", "--validation-share", "0")
    assert (code, found.counts["train"]) == (0, {0: 1, 1: 1})


def test_captions_that_are_no_text(tmp_path, shard):
    put_parquet(tmp_path / "in/a.parquet", [2020, 2021], "caption")
    code, found = shard(tmp_path / "in", "--validation-share", "0")
    assert (code, found.counts["train"]) == (0, {-1: 2})
    assert any("column caption is of type int64" in note for note in found.summary["notes"])
    (tmp_path / "in").rename(tmp_path / "named")
    code, error = shard(tmp_path / "named", "--caption-column", "caption")
    assert code == 2
    assert "--caption-column" in error

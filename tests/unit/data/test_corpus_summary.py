"""What a corpus holds is counted, said, and compared with what a run needs before it trains."""

import io
import json
import warnings
from pathlib import Path

import pytest
from PIL import Image

from gear_dist.cli.conditions import _warn_of_untrained, parse_classes
from gear_dist.cli.main import main
from gear_dist.config.data import DataConfig
from gear_dist.data.corpus import open_corpus
from gear_dist.data.corpus_summary import CorpusSummary, check_contents, read_contents
from gear_dist.data.loader import build_loader
from gear_dist.data.manifest import DATASET_KEY, dump_info, load_manifest
from gear_dist.errors import DataError
from gear_dist.inference.subjects import ClassSubjects
from gear_dist.storage.local import FileStorage
from loader_cases import tar_of
from refusals import has_word

TINY = Path(__file__).parents[3] / "configs" / "tiny.yaml"
NO_TEACHER = ("alignment.soft_weight=0", "alignment.hard_weight=0", "engine.global_batch=4")
NUM_SAMPLES, WITHOUT_CLASS, WITHOUT_CAPTION = 12, 1, 8


def jpeg(seed):
    stream = io.BytesIO()
    Image.new("RGB", (40, 36), (seed * 9 % 256, seed * 5 % 256, 99)).save(stream, "JPEG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
    """Three classes; the last image has none; the first four have a caption."""
    members = {}
    for i in range(NUM_SAMPLES):
        members[f"{i:04d}.jpg"] = jpeg(i)
        if i < NUM_SAMPLES - WITHOUT_CLASS:
            members[f"{i:04d}.cls"] = str(i % 3).encode()
        if i < NUM_SAMPLES - WITHOUT_CAPTION:
            members[f"{i:04d}.txt"] = b"a picture"
    folder = tmp_path_factory.mktemp("tars")
    (folder / "0.tar").write_bytes(tar_of(members))
    return folder


def shard(source, destination, *options):
    words = ["shard", str(source), str(destination), "--workers", "1", "--validation-share", "0"]
    assert main([*words, *options]) == 0
    return f"{destination}/train"


@pytest.fixture(scope="module")
def corpus(tars, tmp_path_factory):
    return shard(tars, tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """No class, no caption."""
    folder = tmp_path_factory.mktemp("bare-tars")
    (folder / "0.tar").write_bytes(tar_of({f"{i:04d}.jpg": jpeg(i) for i in range(6)}))
    return shard(folder, tmp_path_factory.mktemp("bare"))


def dry_run(address, *settings):
    return main(["train", str(TINY), f"data.train={address}", *NO_TEACHER, *settings, "--dry-run"])


def test_shard_says_what_it_made(tars, tmp_path, capsys):
    shard(tars, tmp_path, "--json")
    split = json.loads(capsys.readouterr().out)["splits"]["train"]
    assert (split["samples"], split["classes"]) == (NUM_SAMPLES, 3)
    assert split["first_classes"] == ["0", "1", "2"]
    assert split["without_class"] == WITHOUT_CLASS
    assert split["with_caption"] == NUM_SAMPLES - WITHOUT_CAPTION
    assert [("no-class=skip" in line, "no-caption=skip" in line) for line in split["warnings"]] == [
        (True, False),
        (False, True),
    ]


def test_shard_warns_of_a_corpus_without_classes_and_captions(bare, capsys):
    storage = FileStorage(Path(bare))
    counts = read_contents(storage, load_manifest(storage).info)
    assert counts == CorpusSummary(6, (), 6, 6)
    assert main(["stats", bare]) == 0
    assert counts.describe() in capsys.readouterr().out


def test_images_without_a_class_can_be_left_out(tars, tmp_path, capsys):
    address = shard(tars, tmp_path, "--policy", "no-class=skip", "--json")
    split = json.loads(capsys.readouterr().out)["splits"]["train"]
    assert (split["samples"], split["skipped"]) == (NUM_SAMPLES - WITHOUT_CLASS, WITHOUT_CLASS)
    assert dry_run(address) == 0


def test_corpora_that_did_not_count_are_counted(corpus):
    storage = FileStorage(Path(corpus))
    info = load_manifest(storage).info
    old = info._replace(num_without_class=-1, num_without_caption=-1)
    expected = CorpusSummary(NUM_SAMPLES, ("0", "1", "2"), WITHOUT_CLASS, WITHOUT_CAPTION)
    assert read_contents(storage, info) == read_contents(storage, old) == expected


def test_dataset_json_of_an_earlier_version_is_read(corpus, tmp_path):
    storage = FileStorage(tmp_path / "old")
    for item in FileStorage(Path(corpus)).list():
        storage.write(item.key, FileStorage(Path(corpus)).read(item.key))
    node = json.loads(storage.read(DATASET_KEY))
    info = load_manifest(storage).info
    fields = {k: v for k, v in info._asdict().items() if not k.startswith("num_without")}
    assert set(node) - set(fields) == {"num_without_class", "num_without_caption", "xxh3"}
    other = type(info)(**fields)
    assert load_manifest(storage).info == info
    storage.write(DATASET_KEY, dump_info(other))
    assert read_contents(storage, load_manifest(storage).info).num_without_class == WITHOUT_CLASS


def test_stock_tars_are_counted_alike(tars):
    found = open_corpus(str(tars))
    counts = read_contents(found.storage, found.manifest.info)
    assert counts == CorpusSummary(NUM_SAMPLES, ("0", "1", "2"), WITHOUT_CLASS, WITHOUT_CAPTION)


def test_one_image_without_a_class_is_refused_before_training(corpus, tars, capsys):
    for address in (corpus, str(tars)):
        assert dry_run(address) == 3
        assert "no-class=skip" in capsys.readouterr().err
    options = {"batch_size": 2, "rank": 0, "world_size": 1, "seed": 0}
    with pytest.raises(DataError):
        build_loader(DataConfig(image_size=32), corpus, num_classes=3, **options)


def test_a_dry_run_misses_the_files_of_lpips_as_a_run_would(corpus, tmp_path, capsys):
    files = [f"losses.lpips_{name}_path={tmp_path}/{name}.pth" for name in ("vgg16", "heads")]
    only_tokenizer = ("stages.joint.steps=0", "stages.generator.steps=0")  # needs no class
    settings = (*only_tokenizer, "losses.lpips_weight=1", *files)
    assert dry_run(corpus, *settings) == 2
    message = capsys.readouterr().err
    for part in ("losses.lpips_vgg16_path", f"{tmp_path}/vgg16.pth", "losses.lpips_weight=0"):
        assert part in message


def test_a_tokenizer_needs_no_class(bare):
    steps = ("stages.joint.steps=0", "stages.generator.steps=0")
    assert dry_run(bare) == 3
    assert dry_run(bare, *steps) == 0
    options = {"batch_size": 2, "rank": 0, "world_size": 1, "seed": 0}
    loader = build_loader(DataConfig(image_size=32), bare, num_classes=None, **options)
    try:
        assert next(iter(loader)).labels.tolist() == [-1, -1]
    finally:
        loader.close()


def test_missing_captions_are_refused_beyond_the_allowed_share(corpus, bare, capsys):
    assert dry_run(bare, "data.captions=first") == 3
    assert dry_run(corpus, "data.captions=first") == 3
    assert "data.max_bad_share" in capsys.readouterr().err
    assert dry_run(corpus, "data.captions=first", "data.max_bad_share=0.7") == 0
    assert f"WARNING: {Path(corpus).as_uri()}" in capsys.readouterr().out


def test_fewer_and_more_classes_than_the_generator_has(capsys):
    contents = CorpusSummary(9, ("cat", "dog", "owl"), 0, 9)
    data = DataConfig()
    assert check_contents("a", contents, data, 3) == []
    (line,) = check_contents("a", contents, data, 1000)
    assert "generator.num_classes=3" in line
    with pytest.raises(DataError):
        check_contents("a", contents, data, 2)
    assert check_contents("a", contents, data, None) == []


def test_samples_are_of_the_classes_that_the_corpus_has():
    names = ["cat", "dog", "owl"]
    assert parse_classes("", 1000, names) == [0, 1, 2]
    assert parse_classes("", 4) == [0, 1, 2, 3]
    assert parse_classes("7,dog", 1000, names) == [7, 1]
    subjects = ClassSubjects((2, 7), tuple(names))
    assert [subjects.label(i) for i in (0, 1)] == ["owl", "class 7"]


def test_classes_that_were_never_trained_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    _warn_of_untrained([0, 7, 7], ["cat", "dog"])
    assert "--classes 7: never trained" in capsys.readouterr().err
    _warn_of_untrained([0, 1], ["cat", "dog"])
    _warn_of_untrained([9], [])  # an imported model, whose classes nobody knows
    assert capsys.readouterr().err == ""


def test_the_folder_of_both_splits_is_no_corpus(corpus, capsys):
    assert dry_run(Path(corpus).parent) == 3
    assert f"{Path(corpus).as_uri()}" in capsys.readouterr().err


def test_stock_tars_of_several_splits_are_warned_of(tmp_path):
    for split in ("train", "test"):
        (tmp_path / f"{split}-0.tar").write_bytes(tar_of({"0.jpg": jpeg(1), "0.cls": b"0"}))
    with pytest.warns(UserWarning, match="test-0.tar"):
        open_corpus(str(tmp_path))


def test_classes_that_are_no_numbers_are_none(tmp_path):
    members = {"0.jpg": jpeg(1), "0.cls": b"cat", "1.jpg": jpeg(2), "1.cls": b"1"}
    (tmp_path / "0.tar").write_bytes(tar_of(members))
    found = open_corpus(str(tmp_path))
    assert found.manifest.info.num_without_class == 1


def test_corpora_whose_classes_differ_are_not_combined(tmp_path, capsys):
    addresses = []
    for number, names in enumerate((("a", "b"), ("b", "c"))):
        for name in names:
            folder = tmp_path / f"in{number}" / name
            folder.mkdir(parents=True)
            for i in range(3):
                (folder / f"{i}.jpg").write_bytes(jpeg(40 * number + i))
        addresses.append(shard(tmp_path / f"in{number}", tmp_path / f"out{number}"))
    first, second = addresses
    mixture = [f"data.mixture=[{second}]", "data.mixture_weights=[1,1]"]
    assert dry_run(first, *mixture) == 3
    capsys.readouterr()
    for validation in (first, second):
        assert dry_run(first, f"data.validation={validation}") == 0
        assert "WARNING: data.validation" in capsys.readouterr().out


def test_a_dry_run_warns_of_images_that_validation_has_too(tmp_path, capsys):
    for name, seeds in (("old", (0, 1, 50)), ("new", (50, 51))):
        members = {}
        for seed in seeds:
            members |= {f"{seed}.jpg": jpeg(seed), f"{seed}.cls": str(seed % 3).encode()}
        members |= {"x.jpg": jpeg(90), "x.cls": b"2"}
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.tar").write_bytes(tar_of(members))
    members = {f"{i}.{s}": d for i in range(4) for s, d in (("jpg", jpeg(i)), ("cls", b"2"))}
    (tmp_path / "t").mkdir()
    (tmp_path / "t/0.tar").write_bytes(tar_of(members))
    train = shard(tmp_path / "t", tmp_path / "out-t")
    for name, num_shared in (("old", 2), ("new", 0)):
        held_out = shard(tmp_path / name, tmp_path / f"out-{name}")
        capsys.readouterr()
        assert dry_run(train, f"data.validation={held_out}") == 0
        lines = [line for line in capsys.readouterr().out.splitlines() if "--without-dup" in line]
        assert len(lines) == (1 if num_shared else 0)
        assert all("WARNING" in line and has_word(line, str(num_shared)) for line in lines)
    assert dry_run(train, f"data.validation={tmp_path / 'old'}") == 0
    assert "not searched" in capsys.readouterr().out


def test_a_class_without_an_image_is_told_by_every_command(corpus, tmp_path, capsys):
    """Numbers that begin at 1, as people count."""
    members = {}
    for i in range(6):
        members |= {f"{i}.jpg": jpeg(i), f"{i}.cls": str(i % 3 + 1).encode()}
    (tmp_path / "in").mkdir()
    (tmp_path / "in/0.tar").write_bytes(tar_of(members))
    address = shard(tmp_path / "in", tmp_path / "out")
    told = [capsys.readouterr().out]
    assert main(["stats", address]) == 0
    told.append(capsys.readouterr().out)
    assert dry_run(address, "generator.num_classes=4") == 0
    told.append(capsys.readouterr().out)
    for text in told:
        [line] = [line for line in text.splitlines() if has_word(line, "class 0")]
        assert "WARNING" in line
    assert main(["stats", address, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["warnings"]) == 1
    assert main(["stats", corpus]) == 0
    assert dry_run(address, "generator.num_classes=4", "data.captions=first") == 3
    assert "no image" not in capsys.readouterr().out


@pytest.mark.parametrize(("first", "warned"), [(0, False), (1, True)])
def test_classes_of_stock_tars_that_begin_at_1_are_warned_of(tmp_path, first, warned):
    members = {}
    for i in range(4):
        members |= {f"{i}.jpg": jpeg(i), f"{i}.cls": str(i % 2 + first).encode()}
    (tmp_path / "0.tar").write_bytes(tar_of(members))
    (tmp_path / "1.tar").write_bytes(tar_of({"9.jpg": jpeg(9)}))
    for _ in ("counted", "from the cache"):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            open_corpus(str(tmp_path))
        told = [str(item.message) for item in caught if has_word(str(item.message), "class 0")]
        assert len(told) == warned

"""Filters of a run: exactly the samples that they take, in an order that resumes, and no others."""

import json
import warnings
from collections import Counter
from pathlib import Path

import pytest

from gear_data_prep.__main__ import main as data_prep
from gear_dist.config.data import CaptionTypes, DataConfig
from gear_dist.data import plan as plan_module
from gear_dist.data.corpus import open_corpus
from gear_dist.data.selection import select_samples
from gear_dist.errors import ConfigError, DataError
from image_files import encode, tar_bytes
from loader_cases import all_keys, make_loader, same, take
from refusals import refused

LICENSES = ("CC0-1.0", "CC-BY-4.0", "CC-BY-NC-2.0")
SUBSETS = ("nano", "lite", "full", "full")
TYPES = ("short", "long", "tag")


def node(number: int) -> dict:
    return {
        "captions": [f"{number} {kind}" for kind in TYPES[: 1 + number % 3]],
        "caption_types": TYPES[: 1 + number % 3],
        "license": LICENSES[number % 3],
        "split": SUBSETS[number % 4],
    }


def make_corpus(folder: Path, count: int = 60, *, told: bool = True, broken: int = -1) -> str:
    """Shards of up to ten images, whose captions begin with their numbers; sides of 32 to 43."""
    source = folder / "source"
    source.mkdir(parents=True)
    for first in range(0, count, 10):
        members = {}
        for number in range(first, first + 10):
            text = node(number) if told else {"caption": f"{number} plain"}
            image = encode(number, size=(32 + number % 12, 64))
            members[f"{number:04d}.jpg"] = image[:-50] if number == broken else image
            members[f"{number:04d}.json"] = json.dumps(text).encode()
        (source / f"{first:03d}.tar").write_bytes(tar_bytes(members))
    options = ("--validation-share", "0", "--shard-samples", "10", "--workers", "1")
    checks = ("--check", "header") if broken >= 0 else ()
    assert data_prep(["shard", str(source), str(folder / "out"), *options, *checks]) == 0
    return f"{folder}/out/train"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_corpus(tmp_path_factory.mktemp("typed"))


@pytest.fixture
def in_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the corpus were too large to be kept in memory."""
    monkeypatch.setattr(plan_module, "KEEP_BYTES", 0)


def numbers(batches: list) -> list[int]:
    return [int(caption.split()[0]) for batch in batches for caption in batch.captions]


@pytest.mark.parametrize(
    ("filters", "takes"),
    [
        ({"licenses": ("cc0*", "CC-by-4.0")}, lambda n: n % 3 < 2),
        ({"subsets": ("nano", "FULL")}, lambda n: n % 4 != 1),
        ({"min_side": 40}, lambda n: 32 + n % 12 >= 40),
        ({"caption_types": ("tag",)}, lambda n: n % 3 == 2),
        ({"min_side": 43}, lambda n: n % 12 == 11),  # none of the first shard
        ({"min_side": 36, "subsets": ("full",)}, lambda n: n % 4 > 1 and 32 + n % 12 >= 36),
    ],
)
def test_an_epoch_is_what_the_filters_take(corpus: str, filters: dict, takes) -> None:
    wanted = sorted(n for n in range(60) if takes(n))
    loader = make_loader(corpus, batch_size=5, captions="first", tail="repeat", **filters)
    batches = take(loader, -(-len(wanted) // 5))
    assert sorted(set(numbers(batches))) == wanted
    assert max(Counter(numbers(batches)).values()) <= 2
    held = list(loader.validation_batches())
    assert sorted(numbers(held)) == wanted
    assert loader.describe()["taken"] == len(wanted)
    assert sum(count for _, count in loader.describe()["licenses"]) == len(wanted)


@pytest.mark.usefixtures("in_lanes")
def test_shards_of_which_nothing_is_taken_are_no_trouble(corpus: str) -> None:
    filters = {"min_side": 43, "captions": "first", "shuffle_buffer_shards": 2}
    batches = take(make_loader(corpus, batch_size=5, **filters), 4)
    for batch in batches:
        assert sorted(numbers([batch])) == [11, 23, 35, 47, 59]


@pytest.mark.usefixtures("in_lanes")
def test_ranks_and_resuming_see_one_order(corpus: str) -> None:
    filters = {"licenses": ("cc-by*",), "captions": "random", "shuffle_buffer_shards": 2}
    whole = make_loader(corpus, batch_size=8, **filters)
    expected = take(whole, 9)
    halves = [
        take(make_loader(corpus, batch_size=4, rank=rank, world_size=2, lanes=4, **filters), 9)
        for rank in range(2)
    ]
    straight = take(make_loader(corpus, batch_size=8, lanes=4, **filters), 9)
    for step in range(9):
        joined = [key for half in halves for key in half[step].keys]
        assert joined == list(straight[step].keys)
    first = make_loader(corpus, batch_size=8, **filters)
    batches = iter(first)
    for _ in range(4):
        next(batches)
    state = json.loads(json.dumps(first.state_dict()))
    first.close()
    second = make_loader(corpus, batch_size=8, **filters)
    second.load_state_dict(state)
    assert same(take(second, 5), expected[4:])
    other = make_loader(corpus, batch_size=8, **{**filters, "licenses": ("cc0*",)})
    with refused(DataError, corpus, "filters"):
        other.load_state_dict(state)


def test_a_bad_sample_is_replaced_by_one_that_is_taken(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, broken=2)
    options = {"captions": "first", "licenses": ("*nc*",), "max_bad_share": 0.5}
    batches = take(make_loader(corpus, batch_size=5, tail="repeat", **options), 8)
    found = set(numbers(batches))
    assert 2 not in found
    assert all(number % 3 == 2 for number in found)


def test_without_filters_nothing_moves(corpus: str) -> None:
    """The same pixels, captions and draws: filters that take everything are none."""
    plain = take(make_loader(corpus, captions="random", batch_size=4), 6)
    everything = take(make_loader(corpus, captions="random", batch_size=4, licenses=("*",)), 6)
    assert same(plain, everything)
    selection = select_samples([open_corpus(corpus)], DataConfig())
    assert selection.identities == [open_corpus(corpus).manifest.info.plan_hash]


def test_each_corpus_has_its_own_ratios(corpus: str, tmp_path: Path) -> None:
    other = make_corpus(tmp_path)
    mixed = make_loader(
        corpus,
        other,
        batch_size=20,
        captions="random",
        mixture=(other,),
        mixture_weights=(1.0, 1.0),
        mixture_captions=("short=1 tag=9", "long"),
    )
    counts = [Counter(), Counter()]
    for batch in take(mixed, 30):
        lanes = 20 // 2
        for half, captions in enumerate((batch.captions[:lanes], batch.captions[lanes:])):
            counts[half].update(caption.split()[1] for caption in captions)
    assert set(counts[1]) == {"long"}
    assert set(counts[0]) == {"short", "tag"}
    # A third of the images has a tag, which nine of ten draws of these take.
    assert counts[0]["short"] > counts[0]["tag"] > 0
    data = DataConfig(captions="random", caption_types=("tag",), mixture_captions=("",))
    assert data.captions_of(0, 1) == CaptionTypes(("tag",))
    assert DataConfig(caption_types=("tag",)).captions_of(0, 1) == CaptionTypes(), "captions=off"


def test_what_cannot_be_is_refused(corpus: str, tmp_path: Path) -> None:
    with refused(DataError, corpus, "data.licenses=[mit]", "CC0-1.0"):
        make_loader(corpus, licenses=("mit",))
    with refused(DataError, corpus, "data.min_side=500"):
        make_loader(corpus, min_side=500)
    untold = make_corpus(tmp_path / "untold", 10, told=False)
    with refused(DataError, untold, "data.subsets=[nano]"):
        make_loader(untold, subsets=("nano",))
    source = tmp_path / "untold/source"
    with refused(DataError, source, "data.min_side=3"):
        make_loader(str(source), min_side=3)
    with pytest.warns(UserWarning, match=r"data\.licenses: no sample has ccby"):
        make_loader(corpus, licenses=("cc0*", "ccby"), captions="first")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_loader(corpus, licenses=("cc0*",), captions="first")


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("min_side", -1),
        ("min_side", 1 << 20),
        ("licenses", ("",)),
        ("subsets", ("a", "a")),
        ("mixture_captions", ("short", "long")),
        ("mixture_captions", ("short=0",)),
        ("mixture_captions", ("short=many",)),
        ("mixture_captions", ("short short",)),
        ("mixture_captions", ("=2",)),
        ("mixture_captions", ("a=inf",)),
    ],
)
def test_settings(setting: str, value) -> None:
    with refused(ConfigError, f"data.{setting}"):
        DataConfig(**{setting: value})


def test_keys_are_those_of_the_shards(corpus: str) -> None:
    """A filter changes which rows are read, not how they are named."""
    options = {"captions": "first"}
    everything = set(all_keys(take(make_loader(corpus, batch_size=20, **options), 3)))
    options |= {"subsets": ("nano",)}
    some = set(all_keys(take(make_loader(corpus, batch_size=4, **options), 3)))
    assert some < everything

"""Whose a checkpoint address is, and what a run leaves alone there; folders and a real store."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from checkpoint_states import RUN, make_store, save, shards
from gear_dist.checkpoints import owner as owner_module
from gear_dist.checkpoints.address import check_address
from gear_dist.checkpoints.layout import ALIVE, OWNER
from gear_dist.checkpoints.listing import look
from gear_dist.checkpoints.owner import Claim, Owner, Ownership, OwnershipError, claim_address
from gear_dist.cli.main import main
from gear_dist.config.loading import load_config
from gear_dist.errors import ConfigError, DataError
from gear_dist.storage.base import Storage
from gear_dist.storage.open import open_storage
from refusals import refused

CONFIG = {"config": {"run": {"seed": 0}}}


@pytest.fixture(params=["file", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "file":
        return open_storage(str(tmp_path / "checkpoints"))
    request.getfixturevalue("object_store")
    return open_storage(f"s3://gear-tests-owners/{request.node.name}")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner_module, "HEARTBEAT_S", 0.1)
    monkeypatch.setattr(owner_module, "OWNER_TIMEOUT_S", 1.0)


def claim(storage: Storage, run: str = "", seed: int = 0, **details: Any) -> Ownership:
    """Ask for the address as a run of a seed."""

    def differing(settings: dict[str, Any]) -> list[str]:
        before = settings["run"]["seed"]
        return [] if before == seed else [f"run.seed={seed} (the run has {before})"]

    return claim_address(storage, Claim(run, "demo", "runs/demo", **details), differing)


def keys(storage: Storage) -> dict[str, bytes]:
    return {item.key: storage.read(item.key) for item in storage.list()}


# -- addresses --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "setting"),
    [
        (["data.train=s3://data/demo", "checkpoint.address=s3://data"], "data.train"),
        (["data.train=s3://data/demo/train", "checkpoint.address=s3://data/"], "data.train"),
        (["data.train=s3://data", "checkpoint.address=s3://data"], "data.train"),
        (["data.validation=s3://data/demo/v", "checkpoint.address=s3://data"], "data.validation"),
        (
            [
                "data.mixture=[s3://b/c,s3://data/demo/x]",
                "checkpoint.address=s3://data",
                "data.mixture_weights=[1,1,1]",
            ],
            "data.mixture",
        ),
        (["run.root=/tmp/runs", "checkpoint.address=/tmp/runs"], "run.root"),
        (["run.root=/tmp/runs/demo/deep", "checkpoint.address=file:///tmp/runs"], "run.root"),
        (["run.root=/tmp/runs", "data.train=/tmp/runs/demo"], "data.train"),
        (["run.root=/tmp/runs", "data.train=/tmp/runs/demo/checkpoints/x"], "data.train"),
    ],
)
def test_a_place_that_overlaps_is_refused(words: list[str], setting: str) -> None:
    config = load_config(None, ["data.train=s3://elsewhere/corpus", "run.name=demo", *words])
    by_address = any(word.startswith("checkpoint.address=") for word in words)
    place = "checkpoint.address" if by_address else "run.root"
    with refused(ConfigError, f"{place}=", f"{setting}=", "run.name"):
        check_address(config.run, config.checkpoint, config.data)


@pytest.mark.parametrize(
    "words",
    [
        ["data.train=s3://data/demo-2", "checkpoint.address=s3://data"],
        ["data.train=s3://data/other/train", "checkpoint.address=s3://data"],
        ["data.train=s3://demo/data", "checkpoint.address=s3://data"],
        ["run.root=/tmp/runs", "data.train=/tmp/corpus/train"],
    ],
)
def test_a_place_beside_is_not(words: list[str]) -> None:
    config = load_config(None, ["data.train=x", "run.name=demo", *words])
    check_address(config.run, config.checkpoint, config.data)


def test_a_link_does_not_hide_an_overlap(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "corpus")
    words = [f"data.train={tmp_path}/corpus", f"checkpoint.address={tmp_path}/link"]
    config = load_config(None, words)
    with refused(ConfigError, *words):
        check_address(config.run, config.checkpoint, config.data)


def test_what_no_run_has_written_is_refused_and_stays(storage: Storage) -> None:
    storage.write("mine/notes.txt", b"a user's")
    before = keys(storage)
    with refused(ConfigError, "checkpoint.address", storage.address, "mine", "run.name"):
        claim(storage)
    assert keys(storage) == before


def test_what_appears_beside_the_checkpoints_stays(storage: Storage) -> None:
    """A user's folder, a copy under another name, another run's checkpoint, a file inside one."""
    store = make_store(storage, keep_last=1)
    first = save(store, 1)
    theirs = {"mine/notes.txt": b"a user's", "step-1": b"no folder", f"{first}/note.txt": b"mine"}
    copies = ("best", f"step-00000001-{RUN}-ffffff", "step-00000007-99999999-aaaaaa")
    for name in ("manifest.json", "part-00000.safetensors"):
        theirs |= {f"{copy}/{name}": storage.read(f"{first}/{name}") for copy in copies}
    for key, data in theirs.items():
        storage.write(key, data)
    for step in (2, 3):
        save(store, step)
    found = keys(storage)
    assert {key: found.get(key) for key in theirs} == theirs
    assert f"{first}/manifest.json" not in found
    with refused(ConfigError, "checkpoint.address", "best", "mine", "step-1"):
        claim(storage, RUN)


def test_unfinished_folders_of_others_stay(storage: Storage) -> None:
    store = make_store(storage, keep_last=1)
    own, other, old = (f"step-00000009-{tag}abcdef" for tag in (f"{RUN}-", "99999999-", ""))
    for folder in (own, other, old):
        storage.write(f"{folder}/part-00000.safetensors", b"half")
    save(store, 1)
    folders = {key.partition("/")[0] for key in keys(storage)}
    assert own not in folders
    assert {other, old} <= folders


def test_uploads_of_others_go_on(object_store: object) -> None:
    storage: Any = open_storage("s3://gear-tests-owners/uploads")
    ours = [f"step-00000001-{RUN}-abcdef/part-00000.safetensors", OWNER]
    theirs = ["step-00000001-99999999-abcdef/part-00000.safetensors", "mine/big.bin"]
    for key in (*ours, *theirs):
        storage.client.create_multipart_upload(**storage._of(key))
    assert storage.remove_leftovers(owner_module.is_written_by(RUN)) == 2
    found = storage.client.list_multipart_uploads(Bucket=storage.bucket, Prefix="uploads/")
    assert {item["Key"].removeprefix("uploads/") for item in found["Uploads"]} == set(theirs)


# -- owners -----------------------------------------------------------------------------------


def test_a_second_run_is_told_whose_it_is(storage: Storage) -> None:
    first = claim(storage)
    save(make_store(storage, held=first), 1, CONFIG)
    before = keys(storage)
    for run, seed in (("", 5), ("99999999", 0), ("99999999", 5)):
        with refused(
            OwnershipError, first.owner.pid, f"checkpoint.take_over={first.owner.run}", "run.name"
        ):
            claim(storage, run, seed)
    assert keys(storage) == before
    over = claim(storage, "99999999", take_over=first.owner.run)
    assert over.owner.run == first.owner.run
    with pytest.raises(OwnershipError):
        first.check()
    assert claim(storage, over.owner.run, take_over=over.owner.run).owner.run == over.owner.run


def test_the_same_run_goes_on_whatever_became_of_its_process_or_folder(storage: Storage) -> None:
    """The same id: at once. A new folder: where the configuration is the same and nobody lives."""
    first = claim(storage, shared=True)
    save(make_store(storage, held=first), 1, CONFIG)
    again = claim(storage, first.owner.run, seed=0)
    assert again.owner.run == first.owner.run
    with refused(OwnershipError, storage.address, first.owner.run, "belongs", "run.name"):
        first.check()
    first._ended.set()  # as a kill would
    assert claim(storage).owner.run == first.owner.run
    with refused(OwnershipError, "run.seed=5", f"checkpoint.take_over={first.owner.run}"):
        claim(storage, seed=5)


def test_a_living_owner_keeps_its_address(storage: Storage) -> None:
    first = claim(storage, shared=True)
    save(make_store(storage, held=first), 1, CONFIG)
    with refused(OwnershipError, "in use", f"checkpoint.take_over={first.owner.run}"):
        claim(storage)
    lines: list[str] = []
    with refused(OwnershipError, "in use"):
        claim_address(storage, Claim("", "demo", ""), lambda settings: [], say=lines.append)
    (line,) = lines  # before it waits for a heartbeat
    assert first.owner.run in line
    assert storage.address in line
    first.check()
    first.close()
    assert not storage.exists(ALIVE)
    assert claim(storage).owner.run == first.owner.run


def test_an_address_without_checkpoints_passes_on(storage: Storage) -> None:
    first = claim(storage)
    second = claim(storage, seed=5)
    assert second.owner.run != first.owner.run


def test_without_an_owner_the_checkpoints_say_whose_it_is(storage: Storage) -> None:
    first = claim(storage)
    save(make_store(storage, held=first), 1, CONFIG)
    storage.delete(OWNER)
    with refused(OwnershipError, f"checkpoint.take_over={first.owner.run}"):
        claim(storage, "99999999")
    assert claim(storage).owner.run == first.owner.run


def test_of_two_that_begin_at_once_one_stays(storage: Storage) -> None:
    """Also where the store lets both write, as the embedded one does."""
    held: list[Ownership] = []

    def begin() -> None:
        try:
            held.append(claim(storage))
        except OwnershipError:
            return

    threads = [threading.Thread(target=begin) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stayed = []
    for one in held:
        try:
            one.check()
            stayed.append(one)
        except OwnershipError:
            continue
    assert len(stayed) == 1


def test_an_address_in_another_runs_is_refused(tmp_path: Path, object_store: object) -> None:
    for root in (str(tmp_path / "saved"), "s3://gear-tests-owners/above"):
        claim(open_storage(f"{root}/demo"), shared=True).close()
        with refused(OwnershipError, open_storage(f"{root}/demo").address + "/owner.json"):
            claim(open_storage(f"{root}/demo/deeper/still"), shared=True)
        with refused(ConfigError, open_storage(root).address, "demo"):
            claim(open_storage(root), shared=True)


def test_who_has_lost_the_address_publishes_and_deletes_nothing(storage: Storage) -> None:
    store = make_store(storage, keep_last=1)
    save(store, 1)
    make_store(storage)  # another process of the same run
    before = keys(storage)
    store.save(2, {}, shards())
    [result] = store.take_results()
    assert result.taken
    after = keys(storage)
    assert {key: after.get(key) for key in before} == before
    assert not [key for key in after if key.startswith("step-00000002") and "manifest" in key]


def test_an_owner_that_cannot_be_read_is_an_error(storage: Storage) -> None:
    storage.write(OWNER, b"{torn")
    with refused(DataError, f"{storage.address}/{OWNER}"):
        claim(storage)


# -- the version before -----------------------------------------------------------------------


def make_unmarked(storage: Storage, step: int) -> str:
    """A checkpoint as versions wrote it that did not say whose it is."""
    folder = save(make_store(open_storage(f"{storage.address}/old-{step}")), step, CONFIG)
    name = f"step-{step:08d}-abcdef"
    inner = f"old-{step}/{folder}"
    node = json.loads(storage.read(f"{inner}/manifest.json"))
    node = {key: node[key] for key in ("step", "sequence", "parts", "facts")} | {"format": 2}
    part = storage.read(f"{inner}/part-00000.safetensors")
    storage.delete_folder(f"old-{step}")
    storage.write(f"{name}/part-00000.safetensors", part)
    storage.write(f"{name}/manifest.json", json.dumps(node).encode())
    return name


def test_checkpoints_of_the_version_before_are_taken_over_and_stay(storage: Storage) -> None:
    old = [make_unmarked(storage, step) for step in (1, 2)]
    held = claim(storage)
    store = make_store(storage, held=held, keep_last=1)
    reader = store.open_newest()
    assert reader is not None
    assert reader.manifest.step == 2
    for step in (3, 4):
        save(store, step, CONFIG)
    published = look(storage).published
    assert [item.manifest.step for item in published] == [1, 2, 4]
    assert {item.folder for item in published} >= set(old)
    claim(storage, held.owner.run)


def test_owner_says_who_and_where() -> None:
    text = str(Owner("0a1b2c3d", "demo", "runs/demo", "node-7", 42, "2026-11-27", "x"))
    assert all(word in text for word in ("0a1b2c3d", "runs/demo", "node-7", "42"))


@pytest.mark.parametrize("more", [[], ["--dry-run"], ["run.launcher=local"]])
def test_a_corpus_is_safe_from_the_command_line(tmp_path: Path, more: list[str]) -> None:
    """The issue's own case: the checkpoints' address is where the corpus is."""
    corpus = tmp_path / "data" / "demo"
    (corpus / "shards").mkdir(parents=True)
    (corpus / "shards" / "000000.tar").write_bytes(b"images")
    words = [f"run.root={tmp_path}/runs", "run.name=demo", f"data.train={corpus}/train"]
    words += [f"checkpoint.address={tmp_path}/data", "losses.lpips_weight=0"]
    words += ["losses.gradient_weight=1", "stages.joint.steps=2"]
    config = tmp_path / "empty.yaml"
    config.write_text("{}")
    assert main(["train", str(config), *words, *more]) == 2
    assert (corpus / "shards" / "000000.tar").read_bytes() == b"images"
    assert [path.name for path in (tmp_path / "data").rglob("*") if path.is_file()] == [
        "000000.tar"
    ]

"""Random schedules of faults for the checkpoints of real processes, and what must hold after each.

A schedule is a few lives of a run behind a proxy: one is killed, refused, kept waiting, answered in
halves, met by a second run, or finds its newest checkpoint damaged. After each life everything at
the store is compared with what was there before, by code that shares nothing with the product's.
"""

import json
import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import checkpoint_life
import xxhash

from fault_proxy import LOST, REFUSED, SILENT, TORN, FaultProxy, Rule
from gear_cluster.demo.object_store import StoreEndpoint
from gear_dist.storage.open import open_storage

BUCKET = "gear-tests-schedules"
KEEP_LAST = 2
DAMAGE = ("damaged part", "lost part", "damaged manifest", "edited manifest", "another version")
PLACES = {
    "resume": [
        ("GET HEAD", "manifest.json"),
        ("GET HEAD", "part-"),
        ("GET", "list-type=2"),
        ("GET HEAD PUT", "owner.json"),
    ],
    "publish": [
        ("PUT", "part-"),
        ("PUT", "manifest.json"),
        ("PUT", "latest.json"),
        ("GET", "owner.json"),
    ],
    "prune": [("GET", "list-type=2"), ("DELETE", "."), ("GET HEAD", "manifest.json")],
}
FAULTS = (REFUSED, "503", SILENT, TORN, "truncated", "reset", LOST)
LIFE_S = 120.0


class Life(NamedTuple):
    """How a life went."""

    code: int
    """Exit code; negative: the signal that ended it."""
    told: list[dict[str, Any]]

    def first(self, key: str) -> Any:
        """What it told under a name; None: nothing."""
        return next((line[key] for line in self.told if key in line), None)

    @property
    def said(self) -> str:
        """All lines for people, and the error that ended it."""
        return "\n".join(str(line.get("said", line.get("error", ""))) for line in self.told)


class Schedule:
    """One schedule with an address, run folders and neighbours of its own."""

    def __init__(self, number: int, store: StoreEndpoint, proxy: FaultProxy, url: str, root: Path):
        self._draw = random.Random(number)
        self._proxy = proxy
        self._root = root / f"schedule-{number}"
        self._root.mkdir()
        self._environment = store.environment() | {"AWS_ENDPOINT_URL": url}
        self.place = f"s3://{BUCKET}/{number}"
        # Looked at and damaged behind the proxy's back.
        self._direct = open_storage(self.place, store.endpoint)
        self._lives = 0
        self._spawn = multiprocessing.get_context("forkserver")
        self._spawn.set_forkserver_preload(["__main__", checkpoint_life.__name__])
        self.events: Counter[str] = Counter()
        self.history: list[str] = []
        for key in ("corpus/shard.tar", "saved/other/step-00000001-abcdef/part-00000.safetensors"):
            self._direct.write(key, b"not the run's")
        self._direct.client.create_multipart_upload(  # type: ignore[attr-defined]
            Bucket=BUCKET, Key=f"{number}/saved/other/big.bin"
        )

    # -- what happens -----------------------------------------------------------------------

    def run(self) -> None:
        """All of its lives; AssertionError says what was lost."""
        self._live("clean", saves=self._draw.randint(1, 3))
        for _ in range(self._draw.randint(2, 3)):
            events = (self._kill, self._fault, self._fault, self._two_owners, self._damage)
            self._draw.choice(events)()
        self._end()

    def _end(self) -> None:
        """The store is well again: the run resumes from the best that is left, or says why not."""
        life = self._live("clean", saves=2)
        theirs = "take_over" in (life.first("error") or "")  # the other run came first
        assert life.code == (2 if theirs else 0), (life, self.history)
        if not theirs and self._draw.random() < 0.3:
            self._direct.write("saved/run/notes/readme.txt", b"a user's")
            life = self._live("foreign", saves=1)
            assert life.code == 2, life
            self.events["foreign"] += 1

    def _kill(self) -> None:
        moment = self._draw.choice(list(PLACES))
        methods, path = self._draw.choice(PLACES[moment])
        pid: list[int] = []
        rule = Rule(methods, path, "none", times=1, after=self._draw.randint(0, 4))
        rule.action = lambda: os.kill(pid[0], signal.SIGKILL)
        if self._draw.random() < 0.5:
            rule.fault = LOST  # it dies while the store does what was asked
        self.events[f"kill at {moment}"] += 1
        self._live(f"kill at {moment} {path}", saves=3, rules=[rule], pid=pid)

    def _fault(self) -> None:
        moment = self._draw.choice(list(PLACES))
        methods, path = self._draw.choice(PLACES[moment])
        fault = self._draw.choice(FAULTS)
        times = self._draw.choice([1, 2, -1])
        after = self._draw.randint(0, 6)
        self.events[f"{fault} at {moment}"] += 1
        what = f"{fault} at {moment} {path} after {after} times {times}"
        self._live(what, saves=3, rules=[Rule(methods, path, fault, times, after)])

    def _damage(self) -> None:
        """Spoil the newest good checkpoint, or all of them."""
        good = self._good()
        everything = self._draw.random() < 0.2
        kind = self._draw.choice(DAMAGE)
        for folder in good if everything else good[-1:]:
            self._spoil(kind, f"saved/run/{folder}")
        self.events[kind] += 1
        life = self._live(f"{kind} of {'all' if everything else 'the newest'}", saves=2)
        if good and (everything or len(good) < 2 or kind == "another version"):
            assert life.code == 3, (life, self.history)
            self._mend(kind)

    def _spoil(self, kind: str, folder: str) -> None:
        part, manifest = f"{folder}/part-00000.safetensors", f"{folder}/manifest.json"
        data = bytearray(self._direct.read(part))
        text = self._direct.read(manifest)
        if kind == "damaged part":
            data[self._draw.randrange(len(data))] ^= 1 << self._draw.randrange(8)
            self._direct.write(part, bytes(data))
        elif kind == "lost part":
            self._direct.delete(part)
        elif kind == "damaged manifest":
            self._direct.write(manifest, text[: self._draw.randrange(len(text))])
        elif kind == "edited manifest":
            self._direct.write(manifest, text.replace(b'"step": ', b'"step": 9'))
        else:
            self._direct.write(manifest, b'{"format": 99, "what": "a later version"}')

    def _mend(self, kind: str) -> None:
        """As the message says: begin anew, or move away what no version here can read."""
        if kind == "another version":
            for item in list(self._direct.list("saved/run/step-")):
                self._direct.delete(item.key)
            return
        before = self._snapshot()
        folders = {key.rpartition("/")[0] for key in before if key.endswith("/manifest.json")}
        damaged = [key for key in before if key.rpartition("/")[0] in folders]
        life = self._live("begun anew", 3, more=["run.resume=none"])
        assert (life.code, life.first("resumed")) == (0, 0), (life, self.history)
        assert set(damaged) <= set(self._snapshot()), (life, self.history)

    def _two_owners(self) -> None:
        """Another run with the same address, after this one or beside it."""
        self.events["two owners"] += 1
        beside = self._draw.random() < 0.5
        before = self._snapshot()
        good = self._good()
        first = self._begin(self._words("run"), 3) if beside else None
        other = self._begin(self._words("other", "run.seed=7"), 2)
        ends = [self._await(one) for one in (first, other) if one is not None]
        self._check("two owners", before, good, ends)
        assert good == [] or ends[-1].code == 2, (ends[-1], self.history)

    # -- lives ------------------------------------------------------------------------------

    def _words(self, folder: str, *more: str) -> list[str]:
        return [
            f"run.root={self._root / folder}",
            f"data.train={self.place}/corpus",
            f"checkpoint.address={self.place}/saved",
            f"checkpoint.keep_last={KEEP_LAST}",
            f"checkpoint.asynchronous={str(self._draw.random() < 0.5).lower()}",
            "checkpoint.max_failed_saves=2",
            *more,
        ]

    def _live(
        self,
        what: str,
        saves: int,
        rules: list[Rule] | None = None,
        pid: list[int] | None = None,
        more: Sequence[str] = (),
    ) -> Life:
        before, good = self._snapshot(), self._good()
        self._proxy.rules = []
        begun = self._begin(self._words("run", *more), saves, pid)
        self._proxy.rules = rules or []
        life = self._await(begun)
        self._proxy.rules = []
        self._check(what, before, good, [life])
        return life

    def _begin(self, words: list[str], saves: int, pid: list[int] | None = None) -> Any:
        self._lives += 1
        told = self._root / f"life-{self._lives}.jsonl"
        process = self._spawn.Process(
            target=checkpoint_life.live, args=(words, self._environment, saves, told)
        )
        process.start()
        if pid is not None:
            pid.append(process.pid or 0)
        return process, told

    def _await(self, begun: Any) -> Life:
        process, told = begun
        process.join(LIFE_S)
        assert process.exitcode is not None, f"a life did not end: {self.history}"
        lines = told.read_text().splitlines() if told.exists() else []
        return Life(process.exitcode, [json.loads(line) for line in lines])

    # -- what must hold ---------------------------------------------------------------------

    def _check(self, what: str, before: dict[str, str], good: list[str], lives: list[Life]) -> None:
        after, now_good = self._snapshot(), self._good()
        ends = ", ".join(f"{life.code} {life.first('error') or ''}".strip() for life in lives)
        self.history.append(f"{what}: {ends}; good {len(good)} -> {len(now_good)}")
        context = (self.history, [life.told for life in lives])
        for life in lives:
            # A crash of another kind than a kill is a fault of ours.
            assert life.code in (0, 2, 3, 5, -signal.SIGKILL), context
            assert (life.code in (0, -signal.SIGKILL)) or life.first("error"), context
        lost = {key for key in before if key not in after or before[key] != after[key]}
        theirs = {key for key in lost if not self._is_runs(key)}
        assert not theirs, (theirs, context)
        self._check_newest(good, now_good, lives, context)
        uploads = self._direct.client.list_multipart_uploads(Bucket=BUCKET)  # type: ignore[attr-defined]
        number = self.place.rpartition("/")[2]
        mine = [u["Key"] for u in uploads.get("Uploads", ()) if u["Key"].startswith(f"{number}/")]
        assert f"{number}/saved/other/big.bin" in mine, context

    def _check_newest(
        self, good: list[str], now_good: list[str], lives: list[Life], context: Any
    ) -> None:
        """The newest published checkpoint is there, or there are newer ones in its place."""
        if good:
            newer = [folder for folder in now_good if folder not in good]
            assert good[-1] in now_good or len(newer) >= KEEP_LAST, context
            if good[-1] in now_good:
                kept = set(good[-KEEP_LAST:]) & set(now_good)
                assert len(kept) + len(newer) >= min(KEEP_LAST, len(good)), context
        for life in lives[:1]:
            resumed = life.first("resumed")
            if resumed is not None and good:
                assert resumed == self._step(good[-1]), context

    def _step(self, folder: str) -> int:
        return int(folder.split("-")[1])

    def _is_runs(self, key: str) -> bool:
        """Whether the run may remove a key: below its own address, with its own id in the name."""
        prefix = "saved/run/"
        if not key.startswith(prefix):
            return False
        if key.removeprefix(prefix) in ("owner.json", "alive.json", "latest.json"):
            return True
        ids = [path.read_text().strip() for path in self._root.glob("*/run/run_id")]
        return any(f"-{run}-" in key for run in ids)

    def _snapshot(self) -> dict[str, str]:
        found = {}
        for item in list(self._direct.list()):
            found[item.key] = xxhash.xxh3_64_hexdigest(self._direct.read(item.key))
        return found

    def _good(self) -> list[str]:
        """Folders of good checkpoints, oldest first, judged by the harness alone."""
        found = []
        for item in list(self._direct.list("saved/run/step-")):
            folder, _, name = item.key.removeprefix("saved/run/").partition("/")
            if name == "manifest.json" and (sequence := self._sequence(folder)) is not None:
                found.append((sequence, folder))
        return [folder for _, folder in sorted(found)]

    def _sequence(self, folder: str) -> int | None:
        """Of a good checkpoint; None: it is none."""
        prefix = f"saved/run/{folder}"
        try:
            node = json.loads(self._direct.read(f"{prefix}/manifest.json"))
            claimed = node.pop("xxh3")
            text = json.dumps(node, sort_keys=True, separators=(",", ":")).encode()
            if xxhash.xxh3_128_hexdigest(text) != claimed or node["format"] != 3:
                return None
            for part in node["parts"]:
                data = self._direct.read(f"{prefix}/{part['name']}")
                if xxhash.xxh3_128_hexdigest(data) != part["xxh3"]:
                    return None
        except Exception:  # whatever is wrong with it
            return None
        return int(node["sequence"])


def run_schedules(
    numbers: range,
    store: StoreEndpoint,
    proxy: tuple[str, FaultProxy],
    root: Path,
    show: Callable[[str], None] = lambda _: None,
) -> Counter[str]:
    """Run schedules one after the other; how often each event happened."""
    # The server that lives are forked from imports what they need once; it looks for it only here.
    before = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = f"{Path(__file__).parent}{os.pathsep}{before}"
    events: Counter[str] = Counter()
    url, record = proxy
    for number in numbers:
        started = time.monotonic()
        schedule = Schedule(number, store, record, url, root)
        schedule.run()
        events += schedule.events
        show(f"{number}: {time.monotonic() - started:.1f} s; " + "; ".join(schedule.history))
    return events

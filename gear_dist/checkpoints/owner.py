"""Ownership of a checkpoint address: one run, and one process of that run at a time.

ADDRESS/owner.json names the run and its newest process. A starting process takes the address; a
process that has lost it finds out before it next publishes or deletes. Not every store honours
conditional writes, so two that race may both believe they were first: what they wrote is read
back, and read again before anything is published or deleted, when one of them is told. No torch.
"""

import datetime
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from gear_dist.checkpoints.address import owners_above
from gear_dist.checkpoints.layout import ALIVE, OWNER, POINTER, run_of
from gear_dist.checkpoints.listing import CheckpointListing, look
from gear_dist.errors import ConfigError, DataError, UserError
from gear_dist.storage.base import MissingObjectError, Storage
from gear_dist.storage.json_files import to_json

HEARTBEAT_S = 10.0
"""Between heartbeats of the process that owns an address."""
OWNER_TIMEOUT_S = 2.5 * HEARTBEAT_S
"""Without a heartbeat for this time an owner is gone; no clocks are compared."""


class OwnershipError(ConfigError):
    """The address is another's."""


class Owner(NamedTuple):
    """What owner.json says."""

    run: str
    """Id of the run."""
    name: str
    folder: str
    host: str
    pid: int
    started: str
    """ISO 8601."""
    attempt: str
    """Tells processes of one run apart."""

    @classmethod
    def here(cls, run: str, name: str = "", folder: str = "") -> "Owner":
        """This process, for a run."""
        started = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        return cls(
            run, name, folder, socket.gethostname(), os.getpid(), started, secrets.token_hex(4)
        )

    def __str__(self) -> str:
        return (
            f"run {self.run} ({self.folder or self.name} on {self.host}, process {self.pid}, "
            f"since {self.started})"
        )


class Claim(NamedTuple):
    """Who asks for an address."""

    run: str
    """Id that the run's folder has; empty: the folder is new."""
    name: str
    folder: str
    take_over: str = ""
    """Id of the run that may be taken over."""
    shared: bool = False
    """Whether others may use the address: then heartbeats are written there."""


class Ownership:
    """An address that is held, by rank 0 of a run."""

    def __init__(self, storage: Storage, owner: Owner) -> None:
        self._storage = storage
        self.owner = owner
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    @classmethod
    def acquire(cls, storage: Storage, owner: Owner, *, replace: bool = True) -> "Ownership":
        """Write the owner down.

        Args:
            replace: replace any previous owner; if False, a concurrent owner wins.

        Raises:
            OwnershipError: another was faster.
            UserError: the store refuses.
        """
        ownership = cls(storage, owner)
        if replace:
            storage.write(OWNER, _encode(owner._asdict()))
        else:
            storage.create(OWNER, _encode(owner._asdict()))
        ownership.check()  # the response may be lost, or the store may ignore the condition
        return ownership

    def check(self) -> None:
        """Before each publication and deletion.

        Raises:
            OwnershipError: the address is another run's, or another process's of this run.
            UserError: that could not be found out.
        """
        found = read_owner(self._storage)
        if found is None and self._storage.create(OWNER, _encode(self.owner._asdict())):
            found = read_owner(self._storage)
        if found is None or found.attempt != self.owner.attempt:
            raise OwnershipError(
                f"{self._storage.address} now belongs to {found or 'no run'}: this run "
                f"({self.owner.run}) will no longer write or delete anything there; set another "
                "checkpoint.address or run.name"
            )

    def start_heartbeat(self) -> None:
        """Start writing heartbeats, until `close`."""
        self._thread = threading.Thread(
            target=self._write_heartbeats, name="checkpoint-owner", daemon=True
        )
        self._thread.start()

    def _write_heartbeats(self) -> None:
        count = 0
        while not self._ended.wait(HEARTBEAT_S if count else 0):
            count += 1
            try:
                self._storage.write(ALIVE, _encode({"attempt": self.owner.attempt, "beat": count}))
            except UserError:
                continue  # if another run then takes over, `check` will notice

    def close(self) -> None:
        """The process lets go of the address, which stays its run's."""
        if self._thread is None:
            return
        self._ended.set()
        self._thread.join()
        self._thread = None
        try:
            self._storage.delete(ALIVE)
        except UserError:
            return  # it looks alive for another moment


def read_owner(storage: Storage, key: str = OWNER) -> Owner | None:
    """The owner of an address; None: it has none.

    Raises:
        DataError: that cannot be read.
    """
    for _ in range(2):  # an answer can be torn
        try:
            node = json.loads(storage.read(key))
            return Owner(**{name: node[name] for name in Owner._fields})
        except MissingObjectError:
            return None
        except (ValueError, KeyError, TypeError):
            continue
    raise DataError(
        f"{storage.address}/{key}: does not name an owner; remove it if no run uses them"
    )


def claim_address(
    storage: Storage,
    claim: Claim,
    differing: Callable[[dict[str, Any]], list[str]],
    *,
    say: Callable[[str], None] = lambda line: None,
) -> Ownership:
    """Make an address this run's, unless it is or holds something else's.

    It is this run's where the ids are equal. Where the run's folder is new (lost, or on another
    machine), a run of the same configuration that is gone is this one.

    Args:
        differing: settings by which a checkpoint's configuration is that of another run.
        say: takes a line before a wait.

    Raises:
        ConfigError: the address is another run's, or holds what no run has written.
        UserError: the store cannot be read or written.
    """
    contents = look(storage)
    _check_above(storage, claim)
    if contents.foreign:
        _refuse_others(storage, contents.foreign)
    owner = read_owner(storage)
    run = _choose_run(storage, claim, contents, owner, differing, say)
    if others := contents.others(run):
        _refuse_others(storage, others)
    here = Owner.here(run, claim.name, claim.folder)
    ownership = Ownership.acquire(storage, here, replace=owner is not None)
    if claim.shared:
        ownership.start_heartbeat()
    return ownership


def _choose_run(
    storage: Storage,
    claim: Claim,
    contents: CheckpointListing,
    owner: Owner | None,
    differing: Callable[[dict[str, Any]], list[str]],
    say: Callable[[str], None],
) -> str:
    """The id under which the address is claimed."""
    present = contents.runs()
    holder = owner.run if owner else min(present, default="")
    if claim.take_over and claim.take_over in {holder, *present}:
        return claim.take_over
    if holder in ("", claim.run):
        return claim.run or secrets.token_hex(4)
    whose = owner or f"run {holder}"
    if owner and _is_alive(storage, owner, say):
        _refuse_owner(storage, f"is in use by {whose}", holder)
    if holder not in present and not contents.unreadable:
        return claim.run or secrets.token_hex(4)  # it ended before its first checkpoint
    newest = [item for item in contents.all_published() if item.manifest.run == holder][-1:]
    if claim.run or not newest:
        _refuse_owner(storage, f"is that of {whose}", holder)
    if settings := differing(newest[0].manifest.state.get("config", {})):
        _refuse_owner(storage, f"is that of {whose}, whose {', '.join(settings)}", holder)
    return holder


def _refuse_owner(storage: Storage, what: str, holder: str) -> None:
    raise OwnershipError(
        f"checkpoint.address: {storage.address} {what}: set another run.name or "
        f"checkpoint.address; to take it over, checkpoint.take_over={holder}"
    )


def _refuse_others(storage: Storage, names: list[str]) -> None:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    raise ConfigError(
        f"checkpoint.address: {storage.address} contains objects that this run did not write "
        f"({', '.join(names[:3])}{more}): set another run.name or checkpoint.address, or move them "
        "elsewhere"
    )


def _check_above(storage: Storage, claim: Claim) -> None:
    """Refuse an address that lies in another run's."""
    for above, key in owners_above(storage) if claim.shared else ():
        try:
            owner = read_owner(above, key)
        except UserError:
            continue  # a place that may not be read, or a file that is no run's
        if owner is not None:
            raise OwnershipError(
                f"checkpoint.address: {storage.address} lies inside the checkpoint address of "
                f"another run, {owner} "
                f"({above.address}/{key}): set another run.name or checkpoint.address"
            )


def _is_alive(storage: Storage, owner: Owner, say: Callable[[str], None]) -> bool:
    """Whether an owner writes heartbeats. Waits for one where there was one before."""
    before = _read_heartbeat(storage)
    if before and before.get("attempt") == owner.attempt:
        say(f"{storage.address} was used by {owner}: waiting up to {OWNER_TIMEOUT_S:.0f} s for it")
    deadline = time.monotonic() + OWNER_TIMEOUT_S
    while before and before.get("attempt") == owner.attempt and time.monotonic() < deadline:
        time.sleep(OWNER_TIMEOUT_S / 10)
        now = _read_heartbeat(storage)
        if now != before:
            return bool(now)
    return False


def _read_heartbeat(storage: Storage) -> dict[str, Any]:
    try:
        node = json.loads(storage.read(ALIVE))
    except (MissingObjectError, ValueError):
        return {}
    return node if isinstance(node, dict) else {}


def _encode(node: dict[str, Any]) -> bytes:
    return to_json(node, indent=2).encode()


def is_written_by(run: str) -> Callable[[str], bool]:
    """Whether a key at an address is one that a run writes."""
    return lambda key: run_of(key.partition("/")[0]) == run or key in (OWNER, ALIVE, POINTER)

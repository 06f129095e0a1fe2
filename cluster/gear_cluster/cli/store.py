"""`gear-dist store start|stop|status|env`: the embedded object store by hand, and
`gear-dist store check ADDRESS`: check what any object store supports of what this project needs."""

import argparse
import json
import signal
import sys
from typing import Any

from gear_cluster.demo import object_store
from gear_dist.cli.arguments import path_argument
from gear_dist.errors import DataError, StorageError

_EXIT_SIGTERM = 143


def add_commands(subparsers: Any) -> None:
    """Add `store` and its actions to the command line."""
    store = subparsers.add_parser(
        "store", help="the embedded object store (S3 on loopback)", description=__doc__
    )
    actions = store.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, run, text in (
        ("start", _start, "start the server if it is not running"),
        ("stop", _stop, "stop the server; the objects stay"),
        ("status", _status, "whether it runs"),
        ("env", _env, 'export lines with the secrets, for `eval "$(gear-dist store env)"`'),
    ):
        action = actions.add_parser(name, help=text, description=text)
        action.add_argument(
            "--folder",
            type=path_argument,
            default=object_store.DEFAULT_FOLDER,
            help="folder of objects and credentials (default: %(default)s)",
        )
        action.set_defaults(run=run)
    _add_check(actions)


def _add_check(actions: Any) -> None:
    check = actions.add_parser(
        "check",
        help="check a store's capabilities and what lacking ones cost",
        description="Test everything that this project requires of an object store, below a "
        "scratch prefix of "
        "ADDRESS that is removed afterwards. Exit code 0: all that is required is there; 5: it is "
        "not; 3: the store cannot be reached. docs/object-storage.md explains each line.",
    )
    check.add_argument("address", metavar="ADDRESS", help="s3://BUCKET or s3://BUCKET/PREFIX")
    check.add_argument(
        "--endpoint", default="", help="S3 endpoint; empty: AWS_ENDPOINT_URL, else AWS"
    )
    check.add_argument("--json", action="store_true", help="JSON on standard output")
    check.set_defaults(run=_check)


def _check(args: argparse.Namespace) -> int:
    from gear_cluster.conformance.checks import check_store

    # The default would leave what the check has written.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(_EXIT_SIGTERM))
    findings = check_store(args.address, args.endpoint)
    missing = [found.name for found in findings if found.need == "required" and not found.ok]
    if args.json:
        rows = [found._asdict() for found in findings]
        print(json.dumps({"address": args.address, "ok": not missing, "findings": rows}, indent=1))
        return StorageError.exit_code if missing else 0
    for found in findings:
        print(f"{'ok' if found.ok else 'lacking':8}{found.need:17}{found.name}: {found.seen}")
        if not found.ok and found.need != "not relied upon":
            print(f"{'':25}{found.meaning}")
    if missing:
        raise StorageError(
            f"{args.address}: the store lacks what is required: {', '.join(missing)}"
        )
    print("all that is required is there")
    return 0


def _start(args: argparse.Namespace) -> int:
    store = object_store.ensure_running(args.folder)
    print(f"object store: {store.endpoint} (objects in {args.folder / 'buckets'})")
    print(f"export AWS_ENDPOINT_URL={store.endpoint}")
    print(f'credentials: eval "$(gear-dist store env --folder {args.folder})"')
    return 0


def _stop(args: argparse.Namespace) -> int:
    was_running = object_store.stop(args.folder)
    print("object store: stopped" if was_running else "object store: was not running")
    return 0


def _status(args: argparse.Namespace) -> int:
    state = object_store.status(args.folder)
    where = f" {state.endpoint} pid {state.pid}" if state.pid else ""
    print(f"object store: {state.state}{where}")
    return 0 if state.state == "running" else 3


def _env(args: argparse.Namespace) -> int:
    store = object_store.load_endpoint(args.folder)
    if store is None:
        raise DataError(f"{args.folder}: no object store yet: run `gear-dist store start`")
    for name, value in store.environment().items():
        print(f"export {name}={value}")
    return 0

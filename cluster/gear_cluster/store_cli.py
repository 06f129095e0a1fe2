"""`gear-dist store start|stop|status|env`: the embedded object store by hand."""

import argparse
from typing import Any

from gear_cluster import object_store
from gear_dist.arguments import path_argument
from gear_dist.errors import DataError


def add_commands(subparsers: Any) -> None:
    """Add `store` and its actions to the command line."""
    store = subparsers.add_parser(
        "store", help="the embedded object store (S3 on loopback)", description=__doc__
    )
    actions = store.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, run, text in (
        ("start", _start, "start the server, or find it running"),
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

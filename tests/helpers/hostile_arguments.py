"""Every argument of every command, and every setting, with values that nobody should give.

Commands, options and settings are read from the parser and the schema: a new one is swept with
nothing to add here, but a new command needs a line in `BASES`.
"""

import argparse
import random
from collections.abc import Iterator
from typing import NamedTuple

from gear_dist.config.compare import MORE_TEACHERS, default_settings
from hostile_run import Case
from hostile_tree import RUN

VALUES = (
    *("", " ", "0", "-1", "1.5", "nan", "inf", "-inf", "1e400", "1e-400", "true", "null", "[]"),
    *("{}", "[1,2]", "word", "=", "a=b", ",", ",,", "-", "--", "%s", "${nope}", "0x10", "١٢"),
    str(10**18),
    str(-(10**18)),
    "9" * 40,
    "-" + "9" * 40,
    "9" * 5000,
    "1:30",
    "ünïcodé/圖",
    "\ud83d",  # half a pair
    "\udcff\udcfe",  # bytes of an argument that are no UTF-8
    "nul\0inside",
    "two\nlines",
    "\x1b[31m",
    "x" * 300,  # longer than a file's name may be
    "y/" * 3000,  # longer than a path may be
    *(".", "folder", "text.txt", "empty", "text.txt/below", "missing/below", "dangling", "loop"),
    *("corpus/train", "images", RUN, "model", "tiny.yaml", "teacher.safetensors"),
    *("s3://", "s3:///key", "s3://bucket", "s3://b\0/x", "file://", "file://host/x", "file:///\0"),
    *("http://", "ftp://h/x", "://", "s3:/bucket", "S3://bucket/x", "http://[", "http://h:99999"),
    "~nobody-of-that-name/x",
)

CORPUS = "corpus/train"
_CONFIG = {"configs": ["tiny.yaml"]}


class Base(NamedTuple):
    """Words with which a command does something small."""

    positionals: dict[str, list[str]]
    options: tuple[str, ...] = ()


_MODEL = {"model": [RUN]}
_FEW = ("--images-per-class=1", "--classifier-steps=1")
BASES = {
    "quickstart": Base({}, ("--config=tiny.yaml",)),
    # What a setting is made of is known before training.
    "train": Base(_CONFIG, ("--dry-run",)),
    "plan": Base(_CONFIG),
    "sample": Base(_MODEL, ("--count=1",)),
    "look guidance": Base(_MODEL, ("--count=1", "--guidance=2", "--temperature=1")),
    "look interpolation": Base(_MODEL, ("--classes=0,1", "--steps=2", "--rows=1")),
    "look neighbours": Base(_MODEL, ("--count=1", "--samples=images/val", "--max-held-out=4")),
    "serve": Base(_MODEL, ("--dry-run", "--port=0")),
    "reconstruct": Base(_MODEL, ("--count=1", "--images=images/val")),
    "tokenize": Base(_MODEL, ("--images=images/val/circle_solid", "--out=codes")),
    "import": Base({"sources": ["public/tokenizer.pt"]}, ("--out=imported-again",)),
    "export": Base(_MODEL, ("--out=exported",)),
    "evaluate": Base({"run_folder": [RUN]}, (*_FEW, "--seeds=0", "--max-validation=2")),
    "reproduce": Base(_CONFIG, _FEW),
    "report": Base({"run_folder": [RUN]}),
    "teacher": Base({"corpus": [CORPUS]}, ("--out=new.safetensors", "--steps=1", "--batch=2")),
    "features": Base({"configs": ["tiny.yaml", "captions.yaml"]}, ("--dry-run",)),
    "words": Base({"corpus": [CORPUS]}, ("--out=new.json",)),
    "shard": Base({"source": ["images/val"], "destination": ["shards"]}, ("--workers=1",)),
    "verify": Base({"corpus": [CORPUS]}),
    "repair": Base({"corpus": [CORPUS]}, ("--workers=1",)),
    "stats": Base({"corpus": [CORPUS]}),
    "preview": Base({"corpus": [CORPUS]}, ("--out=sheet.png", "--count=2")),
    "sample-corpus": Base({"folder": ["made"]}, ("--train=16", "--validation=16", "--workers=1")),
    "store start": Base({}, ("--folder=store",)),
    "store stop": Base({}, ("--folder=store",)),
    "store status": Base({}, ("--folder=store",)),
    "store env": Base({}, ("--folder=store",)),
    "store check": Base({"address": ["s3://bucket/prefix"]}),
    "doctor": Base({}),
}


def find_commands(
    parser: argparse.ArgumentParser, prefix: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], list[argparse.Action]]]:
    """Commands by their words, each with its arguments; commands of commands too."""
    actions = [action for action in parser._actions if action.dest not in ("help", "version")]
    groups = [action for action in actions if isinstance(action, argparse._SubParsersAction)]
    if not groups:
        yield prefix, actions
    for group in groups:
        for name, child in group.choices.items():
            yield from find_commands(child, (*prefix, name))


def argument_cases(
    parser: argparse.ArgumentParser, draw: random.Random, values: int
) -> Iterator[Case]:
    """Each argument of each command with some of the values, each flag, and words left out."""
    for words, actions in find_commands(parser):
        base = BASES[" ".join(words)]
        for action in actions:
            for value in draw.sample(VALUES, values) if action.nargs != 0 else [""]:
                yield Case(tuple(_command(words, actions, base, action, value)))
        for missing in base.positionals:
            rest = {name: found for name, found in base.positionals.items() if name != missing}
            yield Case((*words, *(word for found in rest.values() for word in found)))
        yield Case(words)


def _command(
    words: tuple[str, ...],
    actions: list[argparse.Action],
    base: Base,
    changed: argparse.Action,
    value: str,
) -> list[str]:
    positionals = [
        [value] if action is changed else base.positionals.get(action.dest, [])
        for action in actions
        if not action.option_strings
    ]
    line = [*words, *base.options]
    if changed.option_strings:
        name = changed.option_strings[-1]
        line.append(name if changed.nargs == 0 else f"{name}={value}")
    return [*line, "--", *(word for found in positionals for word in found)]


def setting_cases(draw: random.Random, values: int) -> Iterator[Case]:
    """Each setting of a run with some of the values."""
    for key in default_settings([f"{MORE_TEACHERS}second.name"]):
        for value in draw.sample(VALUES, values):
            setting = f"{key}={value}"
            yield Case(("train", "tiny.yaml", setting, "--dry-run"))


def base_case(words: str) -> Case:
    """A command as it works, which the sweep changes a word of."""
    base = BASES[words]
    positionals = (word for found in base.positionals.values() for word in found)
    return Case((*words.split(), *base.options, *positionals))

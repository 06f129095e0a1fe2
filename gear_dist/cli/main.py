"""The `gear-dist` command: the commands of all packages; user errors as one line.

Stands above everything; nothing imports it.
"""

import argparse
import difflib
import importlib
import importlib.metadata
import io
import os
import sys
from collections.abc import Sequence

from gear_dist.cli.arguments import OneLineParser
from gear_dist.cli.examples import EXAMPLES
from gear_dist.errors import EXIT_INTERRUPTED, ConfigError, UserError, one_line
from gear_dist.source_tree import use_source_tree

EXIT_SIGINT = 130
EXIT_SIGPIPE = 141

# Each module has add_commands(subparsers); help lists the commands in this order.
COMMAND_MODULES = (
    "gear_cluster.cli.quickstart",
    "gear_cluster.cli.train",
    "gear_dist.cli.plan",
    "gear_dist.cli.sample",
    "gear_dist.cli.look",
    "gear_dist.cli.serve",
    "gear_dist.cli.tokenize",
    "gear_dist.cli.convert",
    "gear_dist.cli.evaluate",
    "gear_dist.cli.reproduce",
    "gear_dist.cli.report",
    "gear_dist.cli.teacher",
    "gear_dist.cli.words",
    "gear_dist.cli.features",
    "gear_data_prep.cli.main",
    "gear_cluster.cli.store",
    "gear_dist.cli.doctor",
)


def build_parser() -> tuple[OneLineParser, dict[str, OneLineParser]]:
    """The whole command line, and the parser of each command by its name."""
    parser = OneLineParser(
        prog="gear-dist",
        description="Train a visual tokenizer and an autoregressive generator jointly.",
        epilog="Exit codes: 0 done, 2 configuration, 3 data, 4 numeric failure, 5 storage, "
        "75 interrupted (run the same command to resume), 130 interrupted by Ctrl-C and 143 by "
        "SIGTERM without a checkpoint (run the same command again), 141 the output pipe was "
        "closed, 1 anything else.",
    )
    parser.add_argument("--version", action="version", version=f"gear-dist {_version()}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMAND_MODULES:
        importlib.import_module(name).add_commands(commands)
    for name, command in commands.choices.items():
        command.examples = EXAMPLES[name]
    return parser, dict(commands.choices)


def _version() -> str:
    try:
        return importlib.metadata.version("gear-dist")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; `key=value` may stand before and after options.

    Raises:
        ConfigError: an unknown command, with the nearest known one, or a wrong argument.
    """
    parser, commands = build_parser()
    if argv:
        _check_first_word(argv[0], parser, list(commands))
    innermost = parser.innermost(argv)
    for word in argv[1:]:
        innermost.check_option(word)
    args, rest = parser.parse_known_args(argv)
    # argparse gives a list of positionals no word that follows an option.
    takes_overrides = hasattr(args, "overrides")
    late = [word for word in rest if takes_overrides and "=" in word and word[0] != "-"]
    unknown = [word for word in rest if word not in late]
    if unknown:
        innermost.error(f"unknown arguments: {' '.join(unknown)}")
    if late:
        args.overrides = [*args.overrides, *late]
    return args


def _check_first_word(word: str, parser: OneLineParser, commands: list[str]) -> None:
    """Refuse an unknown command or option; argparse would only miss a command."""
    if word.startswith("-"):
        parser.check_option(word)
    elif word not in commands:
        close = difflib.get_close_matches(word, commands, 1, 0.5)
        hint = f"did you mean {close[0]}?" if close else f"use one of {', '.join(commands)}"
        raise ConfigError(f"unknown command {word!r}; {hint}")


def _print_any_name() -> None:
    """Let names that are no text be printed, escaped: a path may hold any bytes."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _flush() -> None:
    if sys.stdout is not None:  # it is None where standard output is closed
        sys.stdout.flush()


def _reader_is_gone() -> bool:
    """Whether standard output is a pipe that nobody reads any more, as after `| head`. From then on
    it goes nowhere, so that the interpreter's last flush does not complain either."""
    try:
        print(flush=True)  # without a buffer nothing is left that a flush could fail on
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _run(words: Sequence[str]) -> int:
    try:
        args = parse(words)
        return args.run(args)
    except SystemExit:  # of --help and --version
        _flush()
        raise


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; unexpected exceptions keep their traceback."""
    use_source_tree()
    _print_any_name()
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        code = _run(words)
        _flush()
        return code
    except UserError as error:
        print(f"gear-dist: {one_line(error)}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        if not _reader_is_gone():
            raise
        return EXIT_SIGPIPE
    except KeyboardInterrupt:
        print("gear-dist: interrupted", file=sys.stderr)
        resumable = bool(words) and words[0] in ("train", "quickstart")
        return EXIT_INTERRUPTED if resumable else EXIT_SIGINT

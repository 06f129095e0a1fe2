"""What a command line is made of: types of arguments, and errors in one line. No torch.

A type is given to `add_argument(type=...)`; what it refuses ends the command with exit code 2 and a
line that names the option, the value and what is allowed.
"""

import argparse
import difflib
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from gear_dist.config.colour import Colour, parse_colour
from gear_dist.errors import ConfigError
from gear_dist.storage.paths import local_path

MAX_WHOLE = 2**31 - 1
MAX_SEED = 2**63 - 1
"""What the generators of torch, numpy and our own all take."""
MAX_GRID_IMAGES = 100_000
"""More do not go into one PNG."""
_ARGUMENT = re.compile(r"^argument ([^:]+): ")


class OneLineParser(argparse.ArgumentParser):
    """Ends with a ConfigError instead of a page of usage; its subcommands do as well."""

    examples: tuple[str, ...] = ()
    """Command lines for the end of the help page, which are not wrapped."""

    def format_help(self) -> str:
        lines = "".join(f"  {example}\n" for example in self.examples)
        return super().format_help() + (f"\nexamples:\n{lines}" if lines else "")

    def innermost(self, words: Sequence[str]) -> "OneLineParser":
        """The parser of the command that the first words name, and of its command in turn."""
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction) and words:
                child = action.choices.get(words[0])
                return self if child is None else child.innermost(words[1:])
        return self

    def check_option(self, word: str) -> None:
        """Refuse a misspelt option, which argparse may tell of only after what else is missing.

        Raises:
            ConfigError: an option that is unknown, and like a known one.
        """
        name = word.partition("=")[0]
        known = [option for action in self._actions for option in action.option_strings]
        if not name.startswith("--") or any(option.startswith(name) for option in known):
            return
        if close := difflib.get_close_matches(name, known, 1):
            self.error(f"unknown option {name}; did you mean {close[0]}?")

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        # argparse drops `--` also where it is an option's value, and gives an empty list for it.
        if action.option_strings and arg_strings == ["--"]:
            raise argparse.ArgumentError(action, "expected a value")
        return super()._get_values(action, arg_strings)

    def error(self, message: str) -> NoReturn:
        """Raise what argparse has to say.

        Raises:
            ConfigError: always.
        """
        said = _ARGUMENT.sub(r"\1 ", message)
        raise ConfigError(f"{said} (see `{self.prog} --help`)")


def whole(low: int = 0, high: int = MAX_WHOLE) -> Callable[[str], int]:
    """An argument that is a whole number within bounds."""

    def parse(text: str) -> int:
        # Python refuses thousands of digits with advice for programmers.
        if not re.fullmatch(r"\s*[+-]?[0-9_]{1,40}\s*", text):
            raise argparse.ArgumentTypeError(f"{text} is not a whole number")
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text} is not a whole number") from None
        if value < low:
            raise argparse.ArgumentTypeError(f"{value} is too small: use at least {low}")
        if value > high:
            raise argparse.ArgumentTypeError(f"{value} is too large: use at most {high}")
        return value

    return parse


def number(
    low: float = 0, high: float = math.inf, *, above: bool = False
) -> Callable[[str], float]:
    """An argument that is a finite number within bounds.

    Args:
        above: whether it must be more than `low`.
    """

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise argparse.ArgumentTypeError(f"{text} is not a finite number")
        if value < low or (above and value == low):
            least = f"more than {low:g}" if above else f"at least {low:g}"
            raise argparse.ArgumentTypeError(f"{text} is too small: use {least}")
        if value > high:
            raise argparse.ArgumentTypeError(f"{text} is out of range: use {low:g} to {high:g}")
        return value

    return parse


def number_list(low: float = 0, *, most: int) -> Callable[[str], list[float]]:
    """An argument that is one or several different numbers, comma-separated; see `number`."""

    def parse(text: str) -> list[float]:
        words = text.split(",")
        if len(words) > most:
            raise argparse.ArgumentTypeError(f"{len(words)} numbers are too many: use {most}")
        values = [number(low)(word) for word in words]
        for place, value in enumerate(values):
            if value in values[:place]:
                raise argparse.ArgumentTypeError(f"{text}: {value:g} is there twice")
        return values

    return parse


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add `--device`; see `read_device`."""
    parser.add_argument(
        "--device",
        default="auto",
        choices=("auto", "cuda", "cpu"),
        help="auto: CUDA where a device is visible, else the CPU (default: auto)",
    )


def read_device(args: argparse.Namespace) -> Any:
    """The torch.device of `--device`.

    Raises:
        ConfigError: CUDA is asked for and unavailable.
    """
    from gear_dist.distributed.device import choose_device

    return choose_device(args.device, setting="--device")


def colour_argument(text: str) -> Colour:
    """An argument that is a colour."""
    try:
        return parse_colour(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from None


def path_argument(text: str) -> Path:
    """An argument that is a path which this system can have."""
    try:
        return local_path(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def output_file(*suffixes: str) -> Callable[[str], Path]:
    """An argument that is a file to write: told before the work, not after it.

    Args:
        suffixes: what its name may end with; none: anything.
    """

    def parse(text: str) -> Path:
        path = path_argument(text)
        if path.is_dir():
            raise argparse.ArgumentTypeError(f"{text} is a folder: name a file in it")
        if path.exists() and not path.is_file():
            raise argparse.ArgumentTypeError(f"{text} is a device or pipe: name a file")
        if suffixes and path.suffix.lower() not in suffixes:
            raise argparse.ArgumentTypeError(f"{text} must end with {' or '.join(suffixes)}")
        return path

    return parse


def output_folder(text: str) -> Path:
    """An argument that is a folder to write to, made where it is absent."""
    path = path_argument(text)
    if path.exists() and not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a file: name a folder")
    return path


def read_argument(option: str, kind: Callable[[str], Any], text: str) -> Any:
    """What an argument's type makes of a text, where the type is known only after parsing.

    Raises:
        ConfigError: as argparse would tell of it.
    """
    try:
        return kind(text)
    except argparse.ArgumentTypeError as error:
        raise ConfigError(f"{option} {error}") from None

"""Words of a command line that make up a configuration: run files, then `key=value`. No torch."""

import argparse
from collections.abc import Sequence
from typing import Any

from gear_dist.errors import ConfigError


class _Sort(argparse.Action):
    """Puts words with `=` among the overrides, the others among the files.

    argparse gives a list of positionals all words up to the next option, and can not tell the two
    kinds apart.
    """

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        words: Sequence[str] = values or []
        namespace.overrides = [*namespace.overrides, *(word for word in words if "=" in word)]
        namespace.configs = [*namespace.configs, *(word for word in words if "=" not in word)]
        if not namespace.configs:
            raise ConfigError(f"name a CONFIG file before {words[0]}")


def add_config_words(parser: argparse.ArgumentParser) -> None:
    """Add `CONFIG [CONFIG ...] [key=value ...]`: `args.configs` and `args.overrides`."""
    parser.add_argument(
        "configs",
        metavar="CONFIG",
        nargs="+",
        action=_Sort,
        default=[],
        help="YAML files, see configs/; later ones override earlier ones",
    )
    parser.add_argument(
        "overrides",
        metavar="key=value",
        nargs="*",
        action=_Sort,
        default=[],
        help="settings that override the files",
    )

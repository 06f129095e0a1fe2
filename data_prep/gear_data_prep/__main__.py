"""`python -m gear_data_prep COMMAND ...`: the sharding commands without the rest."""

import sys

from gear_data_prep.cli.main import add_commands
from gear_dist.cli.arguments import OneLineParser
from gear_dist.errors import EXIT_INTERRUPTED, UserError, one_line


def main(arguments: list[str] | None = None) -> int:
    """Run a command; the exit code."""
    parser = OneLineParser(prog="gear_data_prep", description=__doc__)
    add_commands(parser.add_subparsers(required=True, metavar="COMMAND"))
    try:
        args = parser.parse_args(arguments)
        return args.run(args)
    except UserError as error:
        print(f"gear_data_prep: {one_line(error)}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("gear_data_prep: interrupted; the same command continues", file=sys.stderr)
        return EXIT_INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())

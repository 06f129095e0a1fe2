#!/bin/bash
# omegaconf 2.4.1rc1: a wrong item for a field of type tuple[int, ...] is refused with the message's
# unfilled placeholders, `Value '$VALUE' of type '$VALUE_TYPE'`, and an error whose full_key is None;
# for list[int], and for a plain int, the same mistake is told with the value and the key.
#
# Who turns such errors into a line for users gets neither setting nor value out of them, and has to
# check tuples before the merge.
#
# A good guess: tuples, new in 2.4, report as lists do.
# Seen on 2026-11-27, Python 3.11:
#   tuple: None Value '$VALUE' of type '$VALUE_TYPE' could not be converted to Integer
#   list: items[0] Value 'a' of type 'str' could not be converted to Integer
# Ends with 1 where that changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder/lib" \
    omegaconf==2.4.1rc1 antlr4-python3-runtime==4.9.3 PyYAML==6.0.3
PYTHONPATH="$folder/lib" python3 - <<'PY'
import sys
from dataclasses import dataclass, field

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException


@dataclass
class WithTuple:
    items: tuple[int, ...] = (1, 2)


@dataclass
class WithList:
    items: list[int] = field(default_factory=lambda: [1, 2])


def told(schema):
    try:
        OmegaConf.merge(OmegaConf.structured(schema), {"items": ["a"]})
    except OmegaConfBaseException as error:
        return error.full_key, str(error).splitlines()[0]
    return None, "accepted"


of_tuple, of_list = told(WithTuple), told(WithList)
print("tuple:", *of_tuple)
print("list:", *of_list)
same = of_tuple[0] is None and "$VALUE" in of_tuple[1]
sys.exit(not (same and of_list[0] == "items[0]" and "'a'" in of_list[1]))
PY

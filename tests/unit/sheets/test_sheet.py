"""The commands that a sheet names."""

import dataclasses
import shlex
from types import SimpleNamespace
from typing import Any

from gear_dist.config.models import SamplingConfig
from gear_dist.inference.subjects import ClassSubjects
from gear_dist.sheets.sheet import Maker


def test_a_command_has_every_digit_of_a_setting() -> None:
    usual = SamplingConfig()
    pair: Any = SimpleNamespace(config=SimpleNamespace(sampling=usual))
    sampling = dataclasses.replace(usual, guidance=1.2345678901, compile=False)
    command = Maker(pair, "runs/demo", sampling).command(ClassSubjects((2,), ()), 0, 7, sampling)
    words = shlex.split(command)
    assert float(words[words.index("--guidance") + 1]) == 1.2345678901
    assert "--no-compile" in words

"""Every setting is described; docs/configuration.md matches gear_dist/config."""

from pathlib import Path

from gear_dist.config.compare import flatten
from gear_dist.config.docs import list_settings, render
from gear_dist.config.loading import to_dict
from gear_dist.config.models import TeacherConfig
from gear_dist.config.schema import RunConfig

ROOT = Path(__file__).resolve().parents[3]


def test_every_setting_has_a_line_under_it():
    assert [item.name for item in list_settings() if not item.meaning] == []


def test_every_setting_is_listed():
    config = RunConfig(more_teachers={"NAME": TeacherConfig()})
    assert {item.name for item in list_settings()} == set(flatten(to_dict(config)))


def test_the_page_is_current():
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert page == render(), "run: python -m gear_dist.config.docs > docs/configuration.md"


def test_tables_are_whole():
    rows = [line for line in render().splitlines() if line.startswith("| `")]
    assert len(rows) == len(list_settings())
    assert {row.replace("\\|", "").count("|") for row in rows} == {5}

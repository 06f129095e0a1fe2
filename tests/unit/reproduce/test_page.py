"""The table and the curves of `gear-dist reproduce`, on made-up points."""

import xml.etree.ElementTree as ElementTree

from gear_dist.errors import ConfigError
from gear_dist.reproduce.arms import ARMS, WARM_UP
from gear_dist.reproduce.page import draw_curves, draw_reached, draw_table
from gear_dist.reproduce.study import Point, Run, Study, run_study
from refusals import refused


def run_of(*frechets: float, teraflops: float = 1.0) -> list[Point]:
    return [
        Point(
            step=100 * (i + 1),
            frechet=frechet,
            accuracy=0.25,
            psnr_db=20.0,
            codebook_usage=0.5 if i else None,
            cross_entropy=2.0,
            teraflops=teraflops * (i + 1),
            seconds=10.0,
        )
        for i, frechet in enumerate(frechets)
    ]


POINTS = {
    "llamagen-repa": [run_of(90, 70, 60), run_of(110, 70, 40)],
    "gear": [run_of(80, 50, 20, teraflops=2.5), run_of(80, 40, 20, teraflops=2.5)],
    "ste": [run_of(300, 400, 500), run_of(300, 400, 700)],
    "fresh-on-gear": [run_of(70, 40, 30), run_of(70, 40, 10)],
}


def row(table: str, arm: str) -> list[str]:
    [line] = [line for line in table.splitlines() if f"| {ARMS[arm].text} |" in line]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_table_gives_the_mean_and_the_range_of_the_seeds() -> None:
    cells = row(draw_table(POINTS), "ste")
    assert cells[1:5] == ["300", "600.0 (500.0-700.0)", "25.0 (25.0-25.0)", "20.00 (20.00-20.00)"]
    assert cells[7] == "3.0"


def test_when_an_arm_is_as_good_as_the_baseline_at_its_end() -> None:
    table = draw_reached(POINTS)
    assert row(table, "llamagen-repa")[1:] == ["300", "3.0"]
    assert row(table, "gear")[1:] == ["200", "5.0"]
    assert row(table, "ste")[1:] == ["not reached", "-"]
    assert "(50.0)" in table


def test_the_curves_are_one_picture_with_a_chart_for_each_question() -> None:
    root = ElementTree.fromstring(draw_curves(POINTS))
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts.count("Frechet distance by steps") == 2, "one for the arms, one for fresh ones"
    assert {"GFLOP", "step", ARMS["gear"].text} <= set(texts)
    assert len(list(root.iter("{http://www.w3.org/2000/svg}path"))) == 3 * 3
    assert f"off the scale: {ARMS['ste'].text}" in texts, "it would flatten the others"


def test_arms_start_from_the_warm_up_or_from_the_same_seed(tmp_path) -> None:
    study = make_study(tmp_path, ("gear", "fresh-on-gear"))
    assert ARMS["gear"].start == WARM_UP
    settings = Run(ARMS["fresh-on-gear"], 3).settings(study)
    assert f"stages.init_from={tmp_path}/runs/gear-seed3" in settings
    assert "stages.joint.steps=0" in settings


def test_an_arm_without_the_one_that_it_starts_from_is_refused(tmp_path) -> None:
    with refused(ConfigError, "--arms", "fresh-on-gear", "gear", "add"):
        run_study(make_study(tmp_path, ("fresh-on-gear",)), print)


def make_study(folder, arms: tuple[str, ...]) -> Study:
    return Study(
        folder=folder,
        configs=(str(folder / "none.yaml"),),
        overrides=(),
        arms=arms,
        seeds=(0,),
        every_steps=100,
        images_per_class=4,
        classifier_steps=4,
        jobs=1,
    )

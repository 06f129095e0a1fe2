"""report.html: works on partial runs, escapes everything, asks for nothing from outside."""

import argparse
import base64
import html.parser
import io
import json
import re
import xml.etree.ElementTree

import jinja2
import numpy as np
import pytest
from markupsafe import Markup
from PIL import Image

from gear_dist.cli import report as cli
from gear_dist.config.loading import load_config
from gear_dist.errors import DataError
from gear_dist.report.curves import draw_chart, smooth, thin_out
from gear_dist.report.image_grid import save_grid
from gear_dist.report.markup import element, join
from gear_dist.report.numbers import (
    format_count,
    format_ticks,
    format_value,
    linear_ticks,
    log_ticks,
)
from gear_dist.report.page import write_report
from gear_dist.report.panels import (
    Series,
    StageSpan,
    collect_series,
    collect_stages,
    training_seconds,
)
from gear_dist.report.pictures import embed_picture, spread
from gear_dist.report.templating import load_template
from gear_dist.runs.lock import run_lock
from gear_dist.runs.run_folder import RunFolder
from refusals import refused

DEMO = ["losses.lpips_weight=0", "losses.gradient_weight=1", "stages.joint.steps=100"]


@pytest.fixture
def folder(tmp_path):
    return RunFolder.create(tmp_path / "my run", load_config(None, DEMO))


def record(step, stage="joint", **metrics):
    return {"step": step, "stage": stage, "time_s": step / 10, "images_per_s": 90.0, **metrics}


def images(count=4, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), np.uint8)


def page_of(folder):
    return write_report(folder).read_text(encoding="utf-8")


class Checker(html.parser.HTMLParser):
    """Collects tags and checks that elements close in order."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.texts = [], [], []
        self.feed(text)
        assert self.open == [], f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"{tag} closes out of order"

    def handle_data(self, data):
        self.texts.append(data)

    def all(self, name):
        return [attrs for tag, attrs in self.tags if tag == name]


def test_a_full_run_shows_every_part(folder):
    for step in range(10, 101, 10):
        stage = "tokenizer" if step <= 50 else "joint"
        folder.append_metrics(record(step, stage, l1=1 / step, codebook_usage=0.5, vq=0.1))
    for step in (50, 100):
        save_grid(images(seed=step), folder.reconstruction_grid_path(step))
    save_grid(images(), folder.sample_grid_path(100))
    folder.write_evaluation({"reconstruction": {"psnr_db": 22.75}})
    folder.write_environment({"versions": {"torch": "2.13.0"}, "world_size": 2})
    folder.write_status("done", 100, 100, exit_code=0)
    text = page_of(folder)
    page = Checker(text)
    for part in ("my run", "step 100 of 100", "22.75", "2.13.0", "LPIPS weights absent", "50.0 %"):
        assert part in text
    pictures = page.all("img")
    assert len(pictures) == 4
    assert all(len(image["alt"]) > 20 for image in pictures)
    titles = [attrs["aria-label"] for attrs in page.all("svg")]
    assert "Tokenizer: Reconstruction" in titles
    assert all(attrs["scope"] in ("row", "col") for attrs in page.all("th"))
    anchors = {attrs["href"] for attrs in page.all("a")}
    assert {f"#{attrs['id']}" for attrs in page.all("section")} <= anchors


@pytest.mark.parametrize("records", [0, 1])
def test_a_run_with_next_to_nothing_has_a_page(folder, records):
    for step in range(records):
        folder.append_metrics(record(step + 1, l1=0.5))
    page = Checker(page_of(folder))
    assert len(page.all("svg")) == 2 * records
    text = " ".join(page.texts)
    assert "not started" in text
    assert ("No metrics have been recorded yet" in text) == (records == 0)


def test_interrupted_and_failed_runs_say_why(folder):
    folder.append_metrics(record(20, l1=0.5))
    folder.write_status("interrupted", 20, 100, exit_code=75, reason="asked to stop")
    text = page_of(folder)
    for part in ("interrupted", "exit code 75", "asked to stop", "the same command resumes"):
        assert part in text
    folder.write_status("failed", 20, 100, exit_code=4, reason="l1 is not finite by step 20")
    assert "l1 is not finite by step 20" in page_of(folder)


def test_a_running_run_shows_the_step_of_its_newest_record(folder):
    folder.write_status("running", 0, 100)
    folder.append_metrics(record(40, l1=0.5, eta_s=125.0))
    text = page_of(folder)
    assert "step 40 of 100" in text
    assert "2m05s" in text


def test_a_run_whose_process_is_gone_is_not_called_running(folder):
    folder.write_status("running", 40, 100)
    folder.append_metrics(record(40, l1=0.5, eta_s=125.0))
    with run_lock(folder.path.absolute()):
        assert "2m05s" in page_of(folder)
    text = page_of(folder)
    assert "the same command resumes it" in text
    assert "2m05s" not in text


def test_hostile_text_is_escaped_everywhere(folder):
    evil = '"><script>alert(1)</script>'
    folder.append_metrics(record(1, stage=evil, **{evil: 0.5}))
    folder.append_metrics(record(2, stage=evil, **{evil: 0.4}))
    folder.write_status("failed", 1, 2, exit_code=1, reason=evil)
    folder.write_environment({evil: evil, "nested": {evil: [evil]}})
    folder.write_evaluation({evil: evil})
    folder.config_path.write_text(json.dumps({"run": {"name": evil}, evil: {"x": evil}}))
    text = page_of(folder)
    page = Checker(text)
    assert "<script" not in text
    assert page.all("script") == []
    assert text.count("&lt;script&gt;") > 8


def test_licences_of_the_training_images_are_a_table(folder):
    folder.write_environment({"order": {"licenses": [["<CC0>", 1200], ["not stated", 3]]}})
    assert "&lt;CC0&gt;" in page_of(folder)
    assert "1,200" in page_of(folder)
    for bad in ({"licenses": 3}, {"licenses": [["a"], 3, ["b", "c"]]}, []):
        folder.write_environment({"order": bad})
        assert "Licences of the images" not in page_of(folder)


def test_the_page_is_self_contained(folder):
    folder.append_metrics(record(1, l1=0.5))
    save_grid(images(), folder.sample_grid_path(1))
    text = page_of(folder)
    page = Checker(text)
    for tag, attrs in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "use")
        for name in ("src", "href", "xlink:href", "action"):
            assert attrs.get(name, "#").startswith(("#", "data:image/")), (tag, attrs)
    assert "url(" not in text
    assert "@import" not in text
    policy = page.all("meta")[2]["content"]
    assert policy.startswith("default-src 'none'")


def test_secrets_in_addresses_are_hidden(folder):
    folder.config_path.write_text("data: {endpoint: 'http://key:hidden@host:1'}\n")
    text = page_of(folder)
    assert "hidden@" not in text
    assert "http://***@host:1" in text


def test_differing_settings_are_highlighted(folder):
    text = page_of(folder)
    assert f"{len(DEMO)} of" in text
    row = re.search(r'<tr class="changed">(?:(?!</tr>).)*lpips_weight.*?</tr>', text)
    assert "<mark>0</mark>" in row.group()
    plain = re.search(r"<tr>(?:(?!</tr>).)*l1_weight.*?</tr>", text)
    assert "<mark>" not in plain.group()


def test_a_further_teachers_settings_have_a_teachers_defaults(folder):
    folder.write_config(load_config(None, ["more_teachers.b.block=3"]))
    row = re.search(r'<tr class="changed">(?:(?!</tr>).)*block.*?</tr>', page_of(folder)).group()
    assert "<mark>3</mark>" in row
    assert '<td class="default">0</td>' in row


def evaluation_of(**changes):
    seeds = {"values": [0.5, 0.625, 0.75], "median": 0.625}
    arm = {"guidance": 2.0, "accuracy": seeds, "frechet": {"values": [9.0, 7.5], "median": 8.25}}
    return {
        "frechet_name": "Frechet distance in some features",
        "guided": arm,
        "unguided": {**arm, "guidance": 1.0},
        "reconstruction": {"psnr_db": 22.75, "ssim": None, "accuracy": 0.9, "num_images": 3000},
        "judge": {"accuracy": 0.98},
        "chance_accuracy": 0.0625,
        "num_generated": 512,
        "real_frechet": 2.25,
        "warnings": ["few images"],
        **changes,
    }


def test_the_evaluation_names_its_measure_its_seeds_and_its_limits(folder):
    folder.write_evaluation(evaluation_of(extra={"speed": 3}))
    text = " ".join(Checker(page_of(folder)).texts)
    for part in ("Frechet distance in some features", "62.5 %", "50.0 %, 62.5 %, 75.0 %", "8.25"):
        assert part in text
    for part in (
        "Guidance 2",
        "No guidance",
        "real images 2.25",
        "22.75 dB",
        "98.0 %",
        "few images",
    ):
        assert part in text
    assert "chance 6.2 %, reconstructions 90.0 %" in text
    assert "extra.speed" in text
    assert "SSIM" not in text, "it was not measured"


def test_values_of_seeds_of_another_form_are_left_out(folder):
    folder.write_evaluation(evaluation_of(guided={"accuracy": {"median": 0.625, "values": 0.5}}))
    text = page_of(folder)
    assert '<b>62.5 %</b><small class="seeds"></small>' in text


def test_an_evaluation_without_a_generator_shows_reconstructions_alone(folder):
    found = evaluation_of(guided=None, unguided=None, judge=None, real_frechet=None)
    folder.write_evaluation(found)
    text = " ".join(Checker(page_of(folder)).texts)
    assert "22.75 dB" in text
    assert "Asked class" not in text


def test_an_evaluation_matches_what_the_protocol_writes():
    """The keys that the table reads are the protocol's."""
    from gear_dist.evaluation import protocol

    wanted = set(evaluation_of()) - {"frechet_name"}
    assert wanted == set(protocol.Evaluation._fields)
    assert set(evaluation_of()["guided"]) == set(protocol.Generation._fields)
    assert set(evaluation_of()["reconstruction"]) == set(protocol.Reconstruction._fields)


def test_the_lpips_note_needs_both_facts(tmp_path):
    config = load_config(None, ["losses.lpips_weight=1", "losses.gradient_weight=1"])
    assert "LPIPS weights absent" not in page_of(RunFolder.create(tmp_path / "a", config))


def test_a_broken_grid_is_left_out(folder):
    folder.sample_grid_path(5).write_bytes(b"\x89PNG broken")
    assert Checker(page_of(folder)).all("img") == []


def test_a_long_run_stays_a_small_page(folder):
    with folder.metrics_path.open("w") as file:
        for step in range(1, 5_001):
            file.write(json.dumps(record(step, l1=1 / step, vq=0.1, grad_norm_x=1.0)) + "\n")
    for step in range(100, 4100, 100):
        save_grid(images(), folder.sample_grid_path(step))
    text = page_of(folder)
    assert len(text) < 1_000_000
    assert "(12 of 40)" in text


def test_the_command_writes_and_prints_the_path(folder, capsys):
    parser = argparse.ArgumentParser()
    cli.add_commands(parser.add_subparsers())
    args = parser.parse_args(["report", str(folder.path)])
    assert args.run(args) == 0
    assert capsys.readouterr().out.strip() == str(folder.report_path)
    assert folder.report_path.stat().st_size > 5000
    args = parser.parse_args(["report", str(folder.path / "absent")])
    with refused(DataError, folder.path / "absent", "no such"):
        args.run(args)


def parse(svg):
    return xml.etree.ElementTree.fromstring(str(svg))


def line_points(svg, kind="line"):
    path = next(e for e in parse(svg).iter("path") if kind in e.get("class").split())
    return [
        tuple(map(float, pair.split()))
        for pair in re.findall(r"[ML]([-\d.]+ [-\d.]+)", path.get("d"))
    ]


def test_a_chart_places_values_by_its_ticks():
    series = [Series("l1", ((0, 0.0), (50, 0.5), (100, 1.0)))]
    svg, is_log = draw_chart(series, [], title="t")
    assert not is_log
    points = line_points(svg)
    ticks = {e.text: float(e.get("y")) - 4 for e in parse(svg).iter("text") if e.get("x") < "48"}
    assert ticks["0.00" if "0.00" in ticks else "0.0"] == pytest.approx(points[0][1], abs=0.2)
    assert points[1][1] == pytest.approx((points[0][1] + points[2][1]) / 2, abs=0.2)
    assert points[0][0] < points[1][0] < points[2][0]


def test_wide_positive_values_take_a_log_scale_and_negative_ones_do_not():
    values = tuple((i, 10.0**-i) for i in range(5))
    svg, is_log = draw_chart([Series("lr", values)], [], title="t")
    assert is_log
    heights = [y for _, y in line_points(svg)]
    gaps = np.diff(heights)
    assert np.allclose(gaps, gaps[0], atol=0.2), "decades are equally far apart"
    assert not draw_chart([Series("x", (*values, (5, -1.0)))], [], title="t")[1]
    assert not draw_chart([Series("x", values)], [], title="t", scale="linear")[1]


def test_a_gap_in_the_values_breaks_the_line():
    values = ((0, 1.0), (1, 2.0), (2, None), (3, 1.0), (4, 2.0))
    svg, _ = draw_chart([Series("x", values)], [], title="t")
    path = next(e for e in parse(svg).iter("path"))
    assert path.get("d").count("M") == 2


def test_stages_are_shaded_where_they_ran():
    series = [Series("x", tuple((i, float(i)) for i in range(0, 101, 10)))]
    stages = [StageSpan("tokenizer", 0, 40), StageSpan("joint", 50, 100)]
    root = parse(draw_chart(series, stages, title="t")[0])
    bands = [e for e in root.iter("rect") if "band" in (e.get("class") or "")]
    assert len(bands) == 2
    edges = [(float(b.get("x")), float(b.get("x")) + float(b.get("width"))) for b in bands]
    assert edges[0][1] == pytest.approx(edges[1][0], abs=0.2)
    assert edges[0][1] == pytest.approx(48 + 0.4 * (390 - 48), abs=0.2)
    assert edges[1][1] == pytest.approx(390, abs=0.2)
    assert {"tokenizer", "joint"} <= {e.text for e in root.iter("text")}


def test_hover_shows_each_series_value_at_the_step():
    series = [
        Series("grad_norm_a", ((10, 0.5), (20, 0.25))),
        Series("grad_norm_b", ((20, 3.0),)),
    ]
    root = parse(draw_chart(series, [], title="t")[0])
    tips = [
        [e.text for e in group.iter("text")]
        for group in root.iter("g")
        if group.get("class") == "tip"
    ]
    assert tips == [["step 10", "a 0.5"], ["step 20", "a 0.25", "b 3"]]


@pytest.mark.parametrize("values", [((5, 2.0),), ((5, 0.0),), ((1, 3.0), (2, 3.0)), ((0, -1.0),)])
def test_flat_and_single_values_are_drawn_inside(values):
    svg, _ = draw_chart([Series("x", values)], [], title="t")
    for x, y in line_points(svg):
        assert 48 <= x <= 390
        assert 24 <= y <= 208


def test_a_chart_describes_itself_to_a_screen_reader():
    svg, _ = draw_chart([Series("l1", ((1, 0.5), (9, 0.25)))], [], title="Tokenizer: Total")
    root = parse(svg)
    assert root.get("role") == "img"
    assert root.find("title").text == "Tokenizer: Total"
    assert root.find("desc").text == "l1: 0.5 at step 1, 0.25 at step 9"


def test_smoothing_keeps_a_line_and_does_not_cross_a_stage():
    line = [(i, float(i)) for i in range(100)]
    assert smooth(line, set())[50] == pytest.approx((50, 50.0))
    jump = [(i, 0.0 if i < 50 else 10.0) for i in range(100)]
    assert [v for _, v in smooth(jump, {50})] == [v for _, v in jump]


def test_thinning_keeps_spikes_and_order():
    points = [(i, 1.0) for i in range(10_000)]
    points[7777] = (7777, 99.0)
    thin = thin_out(points)
    assert len(thin) <= 402
    assert (7777, 99.0) in thin
    assert thin == sorted(thin)


def test_metrics_are_sorted_into_panels():
    names = (
        *("tokenizer_loss", "l1", "gradient", "lpips", "vq", "commit", "entropy", "gan"),
        *("discriminator_loss", "cross_entropy", "generator_loss", "align_soft", "align_hard"),
        *("codebook_usage", "grad_norm_generator", "learning_rate_tokenizer", "images_per_s"),
        *("effective_codes", "top1_probability", "top1_probability_soft", "surprise"),
    )
    series = collect_series([{"step": 1, "stage": "joint", "epoch": 0, **dict.fromkeys(names, 1)}])
    found = {
        line.name: (panel.part, panel.title) for panel, group in series.items() for line in group
    }
    assert set(found) == set(names)
    assert found["entropy"] == ("Tokenizer", "Entropy term")
    assert found["cross_entropy"][0] == "Generator"
    assert found["align_soft"] == found["align_hard"]
    assert found["gan"][0] == "Tokenizer"
    assert found["effective_codes"] == ("Codebook", "Effective codes")
    assert found["top1_probability"] == found["top1_probability_soft"] == ("Codebook", "Certainty")
    assert found["surprise"] == ("Other", "Other")
    assert found["l1"] == found["gradient"] == found["lpips"] != found["vq"]


def test_stages_and_time_follow_the_records():
    records = [record(10, "tokenizer"), record(20, "tokenizer"), record(30), record(40)]
    assert collect_stages(records) == [("tokenizer", 10, 20), ("joint", 30, 40)]
    assert training_seconds(records) == pytest.approx(4.0)
    resumed = [{"step": 1, "time_s": 5.0}, {"step": 2, "time_s": 9.0}, {"step": 3, "time_s": 2.0}]
    assert training_seconds(resumed) == pytest.approx(11.0)


def test_pictures_are_real_and_small_enough(tmp_path):
    path = tmp_path / "g.png"
    save_grid(images(36), path, 6, scale=36)
    large, small = embed_picture(path), embed_picture(path, small=True)
    assert max(large.width, large.height) <= 1600
    assert max(small.width, small.height) <= 560
    data = base64.b64decode(large.uri.partition(",")[2])
    assert Image.open(io.BytesIO(data)).size == (large.width, large.height)


def test_spread_keeps_both_ends():
    assert spread(3, 12) == [0, 1, 2]
    chosen = spread(100, 12)
    assert (chosen[0], chosen[-1], len(chosen)) == (0, 99, 12)


def test_numbers_are_readable():
    values = (0, 0.042314, 18.72, 1234.4, -0.5, 3.21e-5, 2.5e8, 0.1)
    shown = ["0", "0.04231", "18.72", "1,234", "\N{MINUS SIGN}0.5", "3.21e\N{MINUS SIGN}5"]
    assert list(map(format_value, values)) == [*shown, "2.5e8", "0.1"]
    assert list(map(format_count, (500, 2000, 15_000, 1.5e6))) == ["500", "2000", "15k", "1.5M"]


def test_ticks_are_round_inside_and_few():
    for low, high in ((0, 1), (-0.13, 0.02), (3.1, 3.2), (0, 400_000), (1e-5, 9e-5)):
        ticks = linear_ticks(low, high)
        assert 3 <= len(ticks) <= 8, (low, high, ticks)
        assert low - 1e-9 <= min(ticks) <= max(ticks) <= high + 1e-9
        assert len(set(format_ticks(ticks))) == len(ticks)
    assert format_ticks([0.0, 0.05, 0.1]) == ["0.00", "0.05", "0.10"]
    for low, high in ((0.001, 0.05), (1e-6, 1.0), (2, 70)):
        ticks = log_ticks(low, high)
        assert 3 <= len(ticks) <= 9, (low, high, ticks)
        assert all(low <= tick * (1 + 1e-9) and tick <= high * (1 + 1e-9) for tick in ticks)


def test_markup_escapes_text_and_attributes_but_not_markup():
    built = element("g", "a < b", Markup("<b>ok</b>"), [None, "&"], class_='x"y', aria_label=None)
    assert built == '<g class="x&#34;y">a &lt; b<b>ok</b>&amp;</g>'
    assert join("<", element("path", stroke_width=2)) == '&lt;<path stroke-width="2"></path>'


def test_a_template_escapes_text_but_not_markup_and_wants_all_its_values():
    page = load_template("gear_dist.report", "environment.html")
    shown = page.render(content=[("a < b", "&"), ("c", [("d", Markup("<b>ok</b>"))])])
    assert '<th scope="row">a &lt; b</th><td>&amp;</td>' in shown
    assert "<b>ok</b>" in shown
    with pytest.raises(jinja2.UndefinedError, match="content"):
        page.render()

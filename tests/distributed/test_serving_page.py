"""The server's page in a real browser: keyboard, phone width, what it shows and what it refuses."""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from gear_dist.cli.main import main
from gear_dist.runs.classes import write_class_names
from image_server import ImageServer, image_server
from tiny_pair import make_tiny_pair

NAMES = ["apple", "pear", "plum", "quince"]
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
PHONE = {"width": 360, "height": 740}
pytestmark = pytest.mark.skipif(
    CHROMIUM is None and "REQUIRE_BROWSER" not in os.environ,
    reason="no Chromium here (apt install chromium, or CHROMIUM=PATH); `make soak` requires it",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page") / "model"
    make_tiny_pair(folder)
    write_class_names(folder, NAMES)
    return folder


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[ImageServer]:
    with image_server(model, "--guidance", "1.5") as it:
        yield it


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # A container's root may start no sandbox of Chromium's; it shows our own page alone.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, server: ImageServer) -> Iterator[Page]:
    context = browser.new_context()
    page = context.new_page()
    problems: list[str] = []
    outside: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: outside.append(request.url))
    page.on(
        "console",
        # A refused request is an error of the network's, which the page shows.
        lambda message: (
            problems.append(message.text)
            if message.type == "error" and "Failed to load resource" not in message.text
            else None
        ),
    )
    page.goto(server.url)
    expect(page.get_by_role("heading", level=1)).to_have_text("model")
    yield page
    assert problems == []
    ours = (server.url, "data:", "blob:")
    assert [url for url in outside if not url.startswith(ours)] == []
    context.close()


def samples(page: Page) -> list[str]:
    """Addresses of the images that are shown."""
    images = page.locator("#samples img")
    return [images.nth(i).get_attribute("src") or "" for i in range(images.count())]


def test_samples_by_keyboard_and_the_command_that_repeats_them(
    page: Page, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_label("Class").focus()
    page.keyboard.type("plum")
    page.keyboard.press("Tab")
    page.keyboard.type("3")
    page.keyboard.press("Tab")
    page.keyboard.type("41")
    page.keyboard.press("Enter")
    expect(page.locator("#samples img")).to_have_count(3)
    expect(page.locator("#status")).to_have_text("3 of 3 images")
    expect(page.locator("#samples figcaption").nth(1)).to_contain_text("plum")
    expect(page.locator("#samples figcaption").nth(1)).to_contain_text("seed 42")
    copy = page.get_by_role("button", name="Copy command").nth(1)
    copy.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#samples button").nth(1)).to_have_text("Copied")
    words = page.evaluate("navigator.clipboard.readText()").split()
    assert words[:2] == ["gear-dist", "sample"]
    with page.expect_download() as saved:
        page.get_by_role("link", name="Save").nth(1).click()
    file = tmp_path / saved.value.suggested_filename
    saved.value.save_as(file)
    monkeypatch.setattr("gear_dist.report.image_grid._MIN_TILE", 16)
    monkeypatch.chdir(tmp_path)
    out = tmp_path / words[words.index("--out") + 1]
    assert main([*words[1:], "--columns", "1"]) == 0
    again, shown = (np.asarray(Image.open(path).convert("RGB")) for path in (out, file))
    windows = np.lib.stride_tricks.sliding_window_view(again, shown.shape)
    assert (windows == shown).all(axis=(-1, -2, -3)).any()


def test_a_link_shows_the_same_samples(page: Page) -> None:
    page.get_by_label("Class").fill("quince")
    page.locator("#seed").fill("7")
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#samples img")).to_have_count(4)
    first = samples(page)
    page.reload()
    expect(page.get_by_label("Class")).to_have_value("quince")
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#samples img")).to_have_count(4)
    assert samples(page) == first
    assert len(set(first)) == 4


@pytest.mark.parametrize(
    ("label", "value", "said"),
    [("Class", "pea", "pear"), ("Seed", "-3", "whole number"), ("Top p", "0", "top_p=0")],
)
def test_what_is_refused_is_said_at_its_field(
    page: Page, label: str, value: str, said: str
) -> None:
    page.get_by_text("More settings").click()
    field = page.get_by_label(label, exact=True)
    field.fill(value)
    page.get_by_role("button", name="Generate").click()
    expect(page.get_by_role("status").first).to_contain_text(said)
    expect(field).to_be_focused()
    expect(field).to_have_attribute("aria-invalid", "true")
    expect(page.locator("#samples figure")).to_have_count(0)


def test_a_link_may_hold_any_guidance(page: Page, server: ImageServer) -> None:
    page.goto(f"{server.url}/#guidance=1.25")
    page.reload()
    expect(page.locator("#guidance-shown")).to_have_text("1.25")
    page.goto(f"{server.url}/#guidance=abc")
    page.reload()
    expect(page.locator("#guidance-shown")).to_have_text("1.5")
    page.get_by_label("Guidance").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#guidance-shown")).to_have_text("1.6")
    page.locator("#seed").fill(str(2**64 - 1))
    page.get_by_role("button", name="Generate").click()
    expect(page.get_by_role("status").first).to_contain_text("64 bits")


def test_a_picture_beside_its_reconstruction_and_tokens(page: Page, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(picture)
    page.locator("#picture").set_input_files(picture)
    shown = page.locator("#reconstruction figure")
    expect(shown).to_have_count(3)
    page.get_by_alt_text("tokens").hover()
    expect(shown.nth(2)).to_contain_text(re.compile(r"row \d, column \d: code \d+"))
    # The same by dropping it on the page.
    page.evaluate(
        """async (bytes) => {
          const transfer = new DataTransfer();
          transfer.items.add(new File([new Uint8Array(bytes)], "a.png", { type: "image/png" }));
          const options = { dataTransfer: transfer, cancelable: true };
          document.dispatchEvent(new DragEvent("drop", options));
        }""",
        list(picture.read_bytes()),
    )
    expect(page.locator("#picture-status")).to_have_text("")
    expect(shown).to_have_count(3)
    text = tmp_path / "text.png"
    text.write_text("no picture")
    page.locator("#picture").set_input_files(text)
    expect(page.locator("#picture-status")).to_contain_text("does not decode")
    expect(shown).to_have_count(0)


def test_it_fits_a_phone_and_can_be_touched(page: Page) -> None:
    page.set_viewport_size(PHONE)
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#samples img")).to_have_count(4)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    touched = page.locator("button:visible, .drop").all()
    assert len(touched) >= 7
    assert min((each.bounding_box() or {"height": 0})["height"] for each in touched) >= 40


def test_samples_can_be_stopped(page: Page) -> None:
    page.get_by_label("Images").fill("64")
    page.get_by_role("button", name="Generate").click()
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("status").first).to_contain_text("stopped after")
    page.get_by_label("Images").fill("1")
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#samples img")).to_have_count(1)


def test_everything_has_a_name_and_a_place_in_the_order(page: Page) -> None:
    """Every control is reached by Tab, in the order that is read, and has a label."""
    names = []
    for _ in range(20):
        page.keyboard.press("Tab")
        names.append(
            page.evaluate(
                "(document.activeElement.labels?.[0] ?? document.activeElement).innerText"
            ).strip()
        )
    order = ["Skip to the samples", "Class", "Images", "Seed", "New", "Guidance", "More settings"]
    found = [next(name for name in names if name.startswith(wanted)) for wanted in order]
    assert [names.index(name) for name in found] == sorted(names.index(name) for name in found)

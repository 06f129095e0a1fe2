"""Measures the server: one client, many clients at once, and how soon the page shows an image.

Clients run in one process beside the server, each asks for one image after another, of classes and
seeds of its own. Run as `make bench-serving` after `make train` (about a minute).
"""

import argparse
import asyncio
import datetime
import os
import select
import shutil
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import httpx

from gear_dist.runs.environment import cpu_model, num_cores

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results/serving-cpu.md"
START_S = 120
WARM_UP = 3
PAGE_LOADS = 20


class Measured(NamedTuple):
    """One number of clients."""

    images_per_s: float
    median_s: float
    p95_s: float
    """Of a request."""


async def _client(api: httpx.AsyncClient, number: int, until: float) -> list[float]:
    seconds = []
    while time.monotonic() < until:
        start = time.monotonic()
        body = {"prompt": number % 4, "seed": 1000 * number + len(seconds)}
        (await api.post("/v1/images/generations", json=body)).raise_for_status()
        seconds.append(time.monotonic() - start)
    return seconds


async def measure(url: str, clients: int, seconds: float) -> Measured:
    """So many clients for so long."""
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as api:
        for _ in range(WARM_UP):
            await _client(api, 0, time.monotonic() + 0.01)
        start = time.monotonic()
        until = start + seconds
        found = await asyncio.gather(*(_client(api, i, until) for i in range(clients)))
        took = time.monotonic() - start
    waits = sorted(wait for each in found for wait in each)
    return Measured(len(waits) / took, statistics.median(waits), waits[int(0.95 * len(waits))])


def measure_page(url: str, chromium: str) -> list[float]:
    """Seconds from the address to the first image, sorted."""
    from playwright.sync_api import sync_playwright

    waits = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for _ in range(PAGE_LOADS):
            page = browser.new_page()
            start = time.monotonic()
            page.goto(url)
            page.get_by_role("button", name="Generate").click()
            page.locator("#samples img").first.wait_for()
            waits.append(time.monotonic() - start)
            page.close()
        browser.close()
    return sorted(waits)


def _start(model: str) -> tuple[subprocess.Popen[str], str]:
    server = subprocess.Popen(
        [sys.executable, "-m", "gear_dist", "serve", model, "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    ready, _, _ = select.select([server.stdout], [], [], START_S)
    url = server.stdout.readline().strip() if ready else ""
    if not url:
        server.kill()
        raise SystemExit("the server did not start")
    return server, url


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="runs/demo")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=15)
    args = parser.parse_args()
    server, url = _start(args.model)
    try:
        alone = asyncio.run(measure(url, 1, args.seconds))
        together = asyncio.run(measure(url, args.clients, args.seconds))
        chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
        page = measure_page(url, chromium) if chromium else []
    finally:
        server.terminate()
        server.wait()
    lines = [
        f"{datetime.date.today()}, {num_cores()} cores ({cpu_model()}), torch {version('torch')}, "
        f"ray {version('ray')}. Command: `make bench-serving`; the demonstration's pair, clients "
        "on the same cores",
        "",
        "| clients | images/s | of one client | median of a request, ms | p95, ms |",
        "|---|---|---|---|---|",
    ]
    for clients, it in ((1, alone), (args.clients, together)):
        ratio = it.images_per_s / alone.images_per_s
        lines.append(
            f"| {clients} | {it.images_per_s:.1f} | {ratio:.2f} | {1000 * it.median_s:.0f} | "
            f"{1000 * it.p95_s:.0f} |"
        )
    if page:
        lines += ["", "From the page's address to its first image, headless Chromium, "]
        lines[-1] += f"{len(page)} loads: median {statistics.median(page):.2f} s, "
        lines[-1] += f"p95 {page[int(0.95 * len(page))]:.2f} s"
    text = "\n".join(lines) + "\n"
    print(text)
    RESULTS.write_text(text)


if __name__ == "__main__":
    main()

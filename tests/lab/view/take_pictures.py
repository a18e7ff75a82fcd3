"""Take the pictures of the view for the documents: ``python -m tests.lab.view.take_pictures``.

The demo is seeded, so the pictures show nearly the same each time: a preemption, on a page that was
open since the first step.
"""

import re
import subprocess
import sys

from PIL import Image

from tests.lab.view.browser import browser, page_at, until
from tests.markdown import ROOT
from tests.server.harness import ENVIRONMENT

SIZES = {1280: 1000, 1920: 1080}
ENOUGH_STEPS = 150
"""Number of steps before the pictures, so that enough has happened."""
DEMO = [
    sys.executable,
    "-m",
    "minimal_vllm",
    "view",
    "--no-browser",
    "--no-tour",
    "--steps-per-second=32",
]


def save(page, name):
    """Write what the page shows to a file of few colors."""
    page.wait_for_timeout(1000)  # until everything is drawn in the new size
    path = ROOT / "docs" / "images" / f"{name}.png"
    page.screenshot(path=path)
    with Image.open(path) as picture:
        picture.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    print(path)


def take_pictures(page):
    """Take one picture per size and theme."""
    for scheme in ("light", "dark"):
        for width, height in SIZES.items():
            page.emulate_media(color_scheme=scheme)
            page.set_viewport_size({"width": width, "height": height})
            save(page, f"view-{scheme}-{width}")


def take_token(page):
    """Take a picture of a token that is followed."""
    page.emulate_media(color_scheme="light")
    page.set_viewport_size({"width": 1280, "height": 900})
    page.keyboard.press("f")
    until(page, "view.lens.report !== null")
    page.fill("#lens-layer", "4")
    page.fill("#lens-top_k", "4")
    until(page, "view.lens.report.top_k === 4")
    save(page, "view-token")


def take_tour(page):
    """Take a picture of the stop at which the pool is full."""
    page.set_viewport_size({"width": 1280, "height": 700})
    page.keyboard.press("g")
    for stop in range(5):
        until(page, f"view.tour.stop === {stop} && !view.tour.isRunning && !view.tour.isStarting")
        if stop < 4:
            page.keyboard.press("ArrowRight")
    save(page, "view-tour")


def main():
    demo = subprocess.Popen(DEMO, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
    try:
        url = re.search(r"at (\S+)", demo.stdout.readline())[1]
        with browser() as chromium, page_at(chromium, url) as page:
            until(page, f"view.player.history.head.step > {ENOUGH_STEPS}")
            page.keyboard.press("p")
            until(page, "view.player.history.head.now.preempted.length && view.player.paused")
            take_pictures(page)
            take_token(page)
            page.keyboard.press("Escape")
            take_tour(page)
    finally:
        demo.terminate()
        demo.wait()


if __name__ == "__main__":
    main()

"""Record the README's animation of the view: ``python -m tests.lab.view.take_animation``.

A prompt is typed while the seeded demo runs, and is followed through the cache step by step. Each
step of the engine is one frame.
"""

import re
import subprocess
import sys
from io import BytesIO

from PIL import Image

from tests.lab.view.browser import browser, page_at, until
from tests.markdown import ROOT
from tests.server.harness import ENVIRONMENT

PATH = ROOT / "docs" / "images" / "view.webp"
DEMO = [
    *(
        sys.executable,
        "-m",
        "minimal_vllm",
        "view",
        "--no-browser",
        "--no-tour",
        "--steps-per-second=1",
    ),
    *("--requests-per-100-steps=11", "--output-tokens=36"),
]
"""It starts slowly, so that the page sees nearly every step, and has room for one more request."""
SCREEN = {"width": 1280, "height": 860}
SIZE = (960, 645)
FIRST_STEP = 52
"""The first step to show: by then several requests run, and some have ended."""
NUM_STEPS = 64
PROMPT = "The lighthouse keeper opened the door, and there in the rain stood"
MAX_TOKENS = 60
TYPING_MS, SENT_MS, STEP_MS, LAST_MS = 110, 900, 200, 2500
"""How long a frame is shown: while typing, before sending, of a step, and the last."""


class Recorder:
    """Takes frames of a page, and writes them as one animation."""

    def __init__(self, page):
        self.page = page
        self.frames = []
        self.durations = []

    def take(self, milliseconds):
        """Add what the page shows, once it shows the present step."""
        until(self.page, "!view.stale && !view.wordsAreStale")
        screen = Image.open(BytesIO(self.page.screenshot())).convert("RGB")
        self.frames.append(screen.resize(SIZE, Image.Resampling.LANCZOS))
        self.durations.append(milliseconds)

    def save(self, path):
        first, *rest = self.frames
        options = {"quality": 70, "method": 6, "minimize_size": True, "loop": 0}
        first.save(path, save_all=True, append_images=rest, duration=self.durations, **options)


def record(page):
    """Type a prompt, send it, and take a frame at each step."""
    recorder = Recorder(page)
    page.fill("#max-tokens", str(MAX_TOKENS))
    words = PROMPT.split(" ")
    for count in range(1, len(words) + 1):
        page.fill("#prompt", " ".join(words[:count]))
        recorder.take(TYPING_MS)
    recorder.durations[-1] = SENT_MS
    page.press("#prompt", "Enter")
    page.wait_for_timeout(300)  # until the engine has it
    page.evaluate("document.activeElement.blur()")
    for _ in range(NUM_STEPS):
        step(page)
        recorder.take(STEP_MS)
    recorder.durations[-1] = LAST_MS
    return recorder


def step(page):
    """Let the paused engine make one step."""
    before = page.evaluate("view.player.history.head.step")
    page.keyboard.press("ArrowRight")
    until(page, f"view.player.history.head.step > {before}")


def main():
    demo = subprocess.Popen(DEMO, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
    try:
        url = re.search(r"at (\S+)", demo.stdout.readline())[1]
        with browser() as chromium, page_at(chromium, url, viewport=SCREEN) as page:
            page.emulate_media(color_scheme="light")
            page.keyboard.press(" ")
            until(page, "view.player.paused")
            while page.evaluate("view.player.history.head.step") < FIRST_STEP:
                step(page)
            record(page).save(PATH)
            print(PATH, f"{PATH.stat().st_size / 1e6:.2f} MB")
    finally:
        demo.terminate()
        demo.wait()


if __name__ == "__main__":
    main()

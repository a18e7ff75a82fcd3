"""Take the README's pictures of the site: run ``make docs``, then this script."""

import shutil
from io import BytesIO
from pathlib import Path
from typing import Literal

from PIL import Image
from playwright.sync_api import sync_playwright

DOCS = Path(__file__).parents[1]
SITE = DOCS.parent / "build" / "docs"
PICTURES: dict[str, tuple[str, Literal["light", "dark"], int]] = {
    "site-light-1280": ("course/07-continuous-batching", "light", 1280),
    "site-dark-1280": ("index", "dark", 1280),
    "site-light-390": ("course/02-kv-cache", "light", 390),
    "site-dark-390": ("compare/comparison", "dark", 390),
}
"""For each file, the page, its color scheme, and the width of the screen in CSS pixels."""


def main() -> None:
    """Take a screenshot of each page."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        for name, (page, scheme, width) in PICTURES.items():
            tab = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
            tab.goto((SITE / f"{page}.html").as_uri())
            picture = Image.open(BytesIO(tab.screenshot())).convert("RGB")
            picture.quantize(128).save(DOCS / "images" / f"{name}.png", optimize=True)
        chromium.close()


if __name__ == "__main__":
    main()

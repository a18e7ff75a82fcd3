"""Take the pictures of the panels in chapters: ``python docs/_ext/panel_pictures.py``.

Each picture holds the query of its panels, by which a test sees that it is up to date.
"""

import shutil
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread

from engine_panels import write_view
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from playwright.sync_api import Browser, sync_playwright
from recorded_panels import PANELS

FOLDER = Path(__file__).parents[1] / "images" / "panels"
WIDTH = 700
"""Width of a picture in CSS pixels, each of which is two pixels wide."""
COLORS = 64
QUERY = "query"
"""Name of the text in a picture that holds the query of its panels."""
HIDDEN = "button, #scrub { display: none; }"
"""Style that hides what can't be pressed or moved in a picture."""
DRAWN = "window.view?.isComplete && !view.stale && !view.wordsAreStale"


def take(chromium: Browser, url: str) -> Image.Image:
    """Return a picture of panels of the view."""
    tab = chromium.new_page(viewport={"width": WIDTH, "height": 200}, device_scale_factor=2)
    tab.goto(url)
    while not tab.evaluate(DRAWN):
        tab.wait_for_timeout(100)
    tab.add_style_tag(content=HIDDEN)
    height = tab.evaluate("document.body.scrollHeight")
    tab.set_viewport_size({"width": WIDTH, "height": height})
    tab.wait_for_timeout(1000)  # until everything is drawn in the new size
    picture = Image.open(BytesIO(tab.screenshot())).convert("RGB")
    tab.close()
    return picture.quantize(COLORS, dither=Image.Dither.NONE)


def main() -> None:
    """Take all pictures, by day."""
    with TemporaryDirectory() as folder, sync_playwright() as playwright:
        write_view(Path(folder), PANELS.values())
        handler = partial(SimpleHTTPRequestHandler, directory=folder)
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        Thread(target=server.serve_forever, daemon=True).start()
        chromium = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        for name, panels in PANELS.items():
            url = f"http://127.0.0.1:{server.server_port}/index.html?{panels.query}&theme=light"
            text = PngInfo()
            text.add_text(QUERY, panels.query)
            take(chromium, url).save(FOLDER / f"{name}.png", optimize=True, pnginfo=text)
        chromium.close()
        server.shutdown()


if __name__ == "__main__":
    main()

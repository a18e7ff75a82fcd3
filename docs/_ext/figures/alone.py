"""The figures as files of their own, for places where pages are seen without the site.

``python docs/_ext/figures/alone.py`` writes them all to ``docs/images/figures``.
"""

import re
import sys
from pathlib import Path

if __name__ == "__main__":  # this folder's own parent is not on the path of a script
    sys.path.insert(0, str(Path(__file__).parents[1]))

from figures import FIGURES

DOCS = Path(__file__).parents[2]
FOLDER = DOCS / "images" / "figures"
LIGHT = {
    "drawing-one": "#2f6fb7",
    "drawing-two": "#b3560f",
    "drawing-three": "#2d7a46",
    "color-background-primary": "#ffffff",
    "color-background-secondary": "#f8f9fb",
    "color-foreground-primary": "#000000",
    "color-foreground-secondary": "#5a5c63",
    "color-foreground-muted": "#6b6f76",
    "font-stack": "sans-serif",
}
DARK = {
    "drawing-one": "#6ea8e8",
    "drawing-two": "#eb9a5a",
    "drawing-three": "#6cc088",
    "color-background-primary": "#131416",
    "color-background-secondary": "#1a1c1e",
    "color-foreground-primary": "#cfd0d0",
    "color-foreground-secondary": "#9ca0a5",
    "color-foreground-muted": "#81868d",
}
"""The theme's colors, which a figure within a page takes from the page."""


def _style() -> str:
    """Return the site's rules for figures, as rules for one that is alone."""
    css = (DOCS / "_static" / "site.css").read_text(encoding="utf-8")
    css = css.replace("  width: 100%;\n", "")  # of the page; alone, it has a size
    rules = re.findall(r"^figure\.drawing ([^{]+{[^}]*})", css, re.M)
    light, dark = (
        " ".join(f"--{name}: {color};" for name, color in colors.items())
        for colors in (LIGHT, DARK)
    )
    return "\n".join(
        [
            f":root {{ {light} background: var(--color-background-primary); }}",
            f"@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}",
            *(" ".join(rule.split()) for rule in rules),
        ]
    )


def alone(name: str) -> str:
    """Return a figure as the text of a file."""
    svg = re.sub("</?figure[^>]*>", "", FIGURES[name].svg(name))
    width, height = (1.5 * float(each) for each in re.findall(r"[\d.]+", svg)[2:4])
    size = f'xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}"'
    svg = svg.replace("<svg ", f"<svg {size} ", 1)
    svg = svg.replace("<defs>", f"<style>\n{_style()}\n</style>\n<defs>", 1)
    return re.sub("(<(?:rect|text|polyline) )", r"\n\1", svg) + "\n"


def main() -> None:
    """Write all figures."""
    FOLDER.mkdir(exist_ok=True)
    for name in FIGURES:
        (FOLDER / f"{name}.svg").write_text(alone(name), encoding="utf-8")


if __name__ == "__main__":
    main()

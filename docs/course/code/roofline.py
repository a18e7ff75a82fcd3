"""Draw the roofline of one H200, with the engine's kernels below it, as an SVG.

    python docs/course/code/roofline.py > docs/images/roofline.svg

The rates were measured: the machine's with a large copy and a large product, the kernels' as
described in benchmarks/README.md. FLOPs per byte are the chapter's formulas.
"""

from math import log10

BANDWIDTH, ARITHMETIC = 4.3, 700.0  # TB/s and TFLOP/s
WIDTH, HEIGHT, LEFT, BOTTOM = 640, 380, 60, 330
MIN_X, MIN_Y = 0.5, 1.0
PER_DECADE_X, PER_DECADE_Y = 140.0, 100.0
GREY, BLUE, ORANGE = "#808890", "#3f8fdc", "#e0812f"

# What, FLOPs per byte, TFLOP/s, and where its name stands: beside it on the right or the left.
KERNELS = [
    ("8B, one token: products", 1.0, 15.14e9 / (2.12 / 512) / 1e12, "right"),
    ("decode attention, G = 2", 2.0, 2.0 * 0.91 * BANDWIDTH, "right"),
    ("decode attention, G = 4", 4.0, 4.0 * 0.94 * BANDWIDTH, "right"),
    ("prompts, our kernel", 0.4 * 4096, 427.0, "left"),
]


def main() -> None:
    ridge = ARITHMETIC / BANDWIDTH
    most = 5000.0
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="sans-serif" font-size="13" fill="{GREY}">',
        "<title>Roofline of one NVIDIA H200</title>",
        *x_axis(),
        *y_axis(),
        f'<polyline points="{point(MIN_X, MIN_X * BANDWIDTH)} {point(ridge, ARITHMETIC)} '
        f'{point(most, ARITHMETIC)}" fill="none" stroke="{BLUE}" stroke-width="2.5"/>',
        text(15, 20 * BANDWIDTH, "4.3 TB/s of memory", "end", BLUE),
        text(most, 1.18 * ARITHMETIC, "700 TFLOP/s of products", "end", BLUE),
        text(ridge / 1.2, ARITHMETIC, f"{ridge:.0f} FLOPs per byte", "end", BLUE),
    ]
    for name, intensity, rate, side in KERNELS:
        x, y = point(intensity, rate).split(",")
        lines.append(f'<circle cx="{x}" cy="{y}" r="5" fill="{ORANGE}"/>')
        anchor, factor = ("start", 1.25) if side == "right" else ("end", 1 / 1.25)
        lines.append(text(intensity * factor, rate / 1.15, name, anchor))
    print("\n".join([*lines, "</svg>"]))


def x_axis() -> list[str]:
    lines = [
        f'<path d="M {LEFT} {BOTTOM} H {WIDTH - 10}" stroke="{GREY}"/>',
        f'<text x="{WIDTH - 10}" y="{BOTTOM + 36}" text-anchor="end">FLOPs per byte</text>',
    ]
    for value in (1, 10, 100, 1000):
        x = point(value, MIN_Y).split(",")[0]
        lines.append(f'<text x="{x}" y="{BOTTOM + 18}" text-anchor="middle">{value:,}</text>')
    return lines


def y_axis() -> list[str]:
    lines = [
        f'<path d="M {LEFT} {BOTTOM} V 20" stroke="{GREY}"/>',
        f'<text x="{LEFT - 50}" y="14">TFLOP/s</text>',
    ]
    for value in (1, 10, 100, 1000):
        y = float(point(MIN_X, value).split(",")[1])
        lines.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:,}</text>')
    return lines


def point(intensity: float, rate: float) -> str:
    x = LEFT + PER_DECADE_X * log10(intensity / MIN_X)
    y = BOTTOM - PER_DECADE_Y * log10(rate / MIN_Y)
    return f"{x:.1f},{y:.1f}"


def text(x: float, y: float, words: str, anchor: str = "start", color: str = GREY) -> str:
    left, top = point(x, y).split(",")
    return f'<text x="{left}" y="{top}" text-anchor="{anchor}" fill="{color}">{words}</text>'


if __name__ == "__main__":
    main()

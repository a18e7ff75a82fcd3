"""Formulas as MathML, which browsers typeset themselves: no script, and no network."""

import re


def inline_formula(text: str) -> str:
    """Return a formula in LaTeX's notation as HTML, to be set within a line."""
    from latex2mathml.converter import convert  # reads its table of symbols, which takes 0.1 s

    return convert(text)


def block_formula(text: str) -> str:
    r"""Return a formula in LaTeX's notation as HTML, to be set on lines of its own.

    Args:
        text: the formula. If it has more than one line, it is an ``aligned`` environment, whose
            lines end with ``\\``. All lines begin at the left.
    """
    from latex2mathml.converter import convert

    lines = re.sub(r"\\(begin|end)\{aligned\}", "", text).split(r"\\")
    formulas = "".join(convert(line.replace("&", "").strip(), display="block") for line in lines)
    return f'<div class="formula">{formulas}</div>'

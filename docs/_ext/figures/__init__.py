"""The figures of the course: SVG, drawn by functions, so that what they show is computed."""

from . import memory, model, steps
from .drawing import FIGURES, WIDTH

__all__ = ["FIGURES", "WIDTH", "memory", "model", "steps"]

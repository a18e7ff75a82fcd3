"""Tables hold medians over layers and steps, and floors where they belong."""

import pytest

from benchmarks.layer_table import Facts, between_steps, layer_tables, step_rows
from benchmarks.layer_trace import Kernel

FACTS = Facts(
    title="tiny",
    kinds=["full attention"] * 3 + ["window of 8"],
    floors={"full attention": {"down": 3.0, "norm": 1.0}, "window of 8": {"down": 2.0}},
    head_floor=5.0,
    unprofiled=70.0,
)


def step_of(parts, begin=0.0):
    """A step of kernels: (name, layer, part, duration, pause before)."""
    step, now = [], begin
    for name, layer, part, duration, pause in parts:
        now += pause
        step.append(Kernel(name, now, now + duration, layer, part))
        now += duration
    return step


def layer(number, scale=1.0):
    return [
        ("norm_k", number, "norm", 2 * scale, 1),
        ("a", number, "down", 4 * scale, 0),
        ("b", number, "down", 2 * scale, 1),
    ]


PARTS = [
    ("f", None, "front", 3, 0),
    ("x", 0, "down", 9, 0),
    *layer(1),
    *layer(2, 1.5),
    ("a", 3, "down", 8, 2),
    ("h", None, "head", 10, 1),
    ("s", None, None, 1, 0),
]


def test_a_layers_rows_are_medians_and_a_parts_floor_stands_in_its_first_row():
    full, windowed = layer_tables([step_of(PARTS)], FACTS)
    assert full.title == "A layer (full attention), median of 2"
    assert full.rows == [
        ["norm", "norm_k", "2.5", "1.0", "0.40", "1.0"],
        ["down", "a", "5.0", "3.0", "0.40", "0.0"],
        ["", "b", "2.5", "", "", "1.0"],
        ["all, with pauses", "", "12.0", "4.0", "0.33", "2.0"],
    ]
    assert full.others == ["Layers 0 launch other kernels and take 9.0 µs: down"]
    assert windowed.rows[0] == ["down", "a", "8.0", "2.0", "0.25", "2.0"]


def test_a_steps_rows_add_up_to_the_whole_step():
    steps = [step_of(PARTS), step_of(PARTS, begin=100.0)]
    rows = step_rows(steps, FACTS)
    assert [row[0] for row in rows] == ["front", "layers", "head", "other", "whole step"]
    assert rows[1] == ["layers", "8", "37.0", "6.0", "13.0", "0.30"]
    assert rows[2] == ["head", "1", "10.0", "1.0", "5.0", "0.45"]
    assert rows[-1] == ["whole step", "11", "51.0", "7.0", "18.0", "0.31"]
    for column in (1, 2, 3):
        assert sum(float(row[column]) for row in rows[:-1]) == float(rows[-1][column])


def test_the_pause_between_steps_is_from_the_last_end_to_the_next_begin():
    steps = [step_of(PARTS), step_of(PARTS, begin=100.0)]
    assert between_steps(steps) == pytest.approx(100 - 58)
    assert between_steps(steps[:1]) is None


def test_a_kind_whose_layers_have_no_kernels_has_no_table():
    assert layer_tables([step_of(PARTS[:1])], FACTS) == []

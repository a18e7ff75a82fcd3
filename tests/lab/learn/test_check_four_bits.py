"""The check of four-bits finds common mistakes."""

from types import SimpleNamespace

import torch

from minimal_vllm.model.quantization.int4 import Int4Weight, unpack
from minimal_vllm_lab.learn.check_four_bits import DEQUANTIZED, UNPACKED, check_four_bits


def unpacks_neighbors(packed):
    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(1)


class ForgetsTheOrder(Int4Weight):
    def dequantized(self, dtype):
        order, self.order = self.order, None
        found = super().dequantized(dtype)
        self.order = order
        return found


def test_neighbors_in_a_byte_are_not_neighbors_in_the_matrix():
    lesson = check_four_bits(SimpleNamespace(unpack=unpacks_neighbors, MyInt4Weight=Int4Weight))
    assert lesson.rule is UNPACKED


def test_a_forgotten_order_is_shown_in_the_smallest_matrix():
    lesson = check_four_bits(SimpleNamespace(unpack=unpack, MyInt4Weight=ForgetsTheOrder))
    assert lesson.rule is DEQUANTIZED
    assert "the columns are ordered" in lesson.history[0]

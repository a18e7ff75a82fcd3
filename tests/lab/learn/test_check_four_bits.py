"""Each mistake in turning 4-bit integers into numbers is found, and for its real reason."""

import pytest

from minimal_vllm_lab.learn.check_four_bits import DEQUANTIZED, DTYPE, UNPACKED, check_four_bits
from tests.lab.learn.mutants import module_with

UNPACK = "return (words >> BITS * places & 15).to(torch.uint8).flatten(1)"
ORDER = "torch.empty_like(weight).index_copy_(1, self.order.long(), weight)"
NUMBERS = "unpack(self.packed).view(self.out_size, -1, self.group_size).float()"
ZERO = "SYMMETRIC_ZERO if self.zero is None else self.zero[..., None].float()"
PRODUCT = "((numbers - zero) * self.scale[..., None].float())"

# The text of the solution that is replaced, and by what.
WRONG_NUMBERS = {
    "numbers in one byte are neighbors": (
        UNPACK,
        "return torch.stack((packed & 15, packed >> 4), -1).flatten(1).to(torch.uint8)",
    ),
    "words are unpacked one by one": (
        "view(len(packed), -1, 1, WORDS)",
        "view(len(packed), -1, 1, 1)",
    ),
    "the highest bits come first": ("BITS * places & 15", "(28 - BITS * places) & 15"),
    "other numbers of the word are left in": (" & 15).to", ").to"),
    "three bits": ("& 15", "& 7"),
    "shifted by bytes": ("BITS * places", "8 * (places % 4)"),
    "not shifted": (">> BITS * places & 15", "+ 0 * places & 15"),
    "shifted by one bit per place": (">> BITS * places", ">> places"),
    "signed numbers": (UNPACK, UNPACK.replace("& 15", "& 15 ^ 8") + " - 8"),
    "the zero point is subtracted here": (UNPACK, UNPACK + " - 8"),
    "one run only": (UNPACK, UNPACK + "[:, :32]"),
    "not flat": (".flatten(1)", ""),
    "flat over all rows": (".flatten(1)", ".flatten()"),
    "int32": (".to(torch.uint8)", ""),
}
WRONG_SHAPES = {
    "not flat": "[3, ",
    "flat over all rows": "[96]",
    "one run only": "[3, 32]",
}
"""What the lesson names for mistakes that change the shape, not the order of the columns."""
WRONG_WEIGHTS = {
    "the order is forgotten": (ORDER, "weight"),
    "the order is applied the wrong way round": (ORDER, "weight[:, self.order.long()]"),
    "the order is applied to the rows of scales": (
        ORDER,
        "torch.empty_like(weight).index_copy_(1, self.order.long().flip(0), weight)",
    ),
    "no zero point": ("numbers - zero", "numbers"),
    "zero points are ignored": (ZERO, "SYMMETRIC_ZERO"),
    "a symmetric format has the zero point 0": ("SYMMETRIC_ZERO if", "0 if"),
    "a symmetric format has the zero point 7": ("SYMMETRIC_ZERO if", "7 if"),
    "the zero point is added": ("numbers - zero", "numbers + zero"),
    "the zero point is subtracted after scaling": (
        PRODUCT,
        "(numbers * self.scale[..., None] - zero)",
    ),
    "the scale is a divisor": ("* self.scale", "/ self.scale"),
    "the scale of the first group for all": (
        "self.scale[..., None]",
        "self.scale[:, :1, None]",
    ),
    "the scale of the first row for all": ("self.scale[..., None]", "self.scale[:1, :, None]"),
    "the zero point of the first group for all": ("self.zero[..., None]", "self.zero[:, :1, None]"),
    "groups are columns apart": (
        PRODUCT,
        "((numbers.view(self.out_size, self.group_size, -1).mT - zero) * "
        "self.scale[..., None]).mT.reshape(self.out_size, -1)",
    ),
    "uint8 wraps around": (
        PRODUCT,
        "((numbers.to(torch.uint8) - torch.as_tensor(zero).to(torch.uint8)) * "
        "self.scale[..., None])",
    ),
    "transposed": ("return weight.to(dtype)", "return weight.T.to(dtype)"),
    "still in groups": ("return weight.to(dtype)", "return weight.view_as(numbers).to(dtype)"),
}
WRONG_DTYPES = {
    "the dtype is ignored": ("return weight.to(dtype)", "return weight"),
    "computed in the dtype": (
        PRODUCT,
        "((numbers - zero).to(dtype) * self.scale[..., None].to(dtype))",
    ),
}


@pytest.mark.breaks("four-bits")
@pytest.mark.parametrize("name", WRONG_NUMBERS)
def test_wrong_numbers_are_found(name):
    lesson = check_four_bits(module_with("four-bits", WRONG_NUMBERS[name]))
    assert lesson.rule is UNPACKED, "\n".join(lesson.lines())


@pytest.mark.breaks("four-bits")
@pytest.mark.parametrize("name", WRONG_WEIGHTS)
def test_wrong_weights_are_found(name):
    lesson = check_four_bits(module_with("four-bits", WRONG_WEIGHTS[name]))
    assert lesson.rule is DEQUANTIZED, "\n".join(lesson.lines())


@pytest.mark.breaks("four-bits")
@pytest.mark.parametrize("name", WRONG_DTYPES)
def test_a_wrong_dtype_is_found(name):
    lesson = check_four_bits(module_with("four-bits", WRONG_DTYPES[name]))
    assert lesson.rule is DTYPE, "\n".join(lesson.lines())


def test_a_forgotten_order_is_shown_in_the_smallest_matrix():
    lesson = check_four_bits(module_with("four-bits", (ORDER, "weight")))
    assert "the columns are ordered" in lesson.history[0]


@pytest.mark.parametrize("mistake", WRONG_SHAPES)
def test_numbers_in_another_shape_are_told_by_their_shape(mistake):
    lesson = check_four_bits(module_with("four-bits", WRONG_NUMBERS[mistake]))
    assert lesson.rule is UNPACKED
    assert lesson.found.startswith(f"the shape {WRONG_SHAPES[mistake]}")

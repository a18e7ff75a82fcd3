import numpy as np
from scipy.stats import kstest, pearsonr

from minimal_vllm.sampling.draw import GOLDEN_GAMMA, _mix, uniforms
from tests.sampling.rows import row


def test_the_hash_is_splitmix64():
    # The first outputs for the seed 1234567, as published with the reference implementation.
    gamma = 0x9E3779B97F4A7C15
    states = [(1234567 + i * gamma) % 2**64 for i in range(1, 6)]
    assert _mix(np.array(states, np.uint64)).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_numbers_are_a_function_of_seed_and_output_length_alone():
    a = uniforms([row(seed=7, output=[1, 2]), row(seed=8)])
    b = uniforms([row(seed=8, prompt=[5, 6, 7]), row(seed=1), row(seed=7, output=[3, 4])])
    assert a[0] == b[2]
    assert a[1] == b[0]


def test_no_seed_is_another_ones_later_part():
    gamma = int(GOLDEN_GAMMA)
    a = uniforms([row(seed=5, output=[0] * n) for n in range(1, 100)])
    b = uniforms([row(seed=5 + gamma, output=[0] * n) for n in range(99)])
    assert not set(a) & set(b)


def test_seeds_beyond_64_bits_and_below_zero_are_seeds_too():
    numbers = uniforms([row(seed=s) for s in (0, -1, 2**64, 2**64 - 1)])
    assert numbers[0] == numbers[2]
    assert numbers[1] == numbers[3]
    assert ((numbers >= 0) & (numbers < 1)).all()


def test_numbers_of_one_seed_and_of_neighbouring_seeds_are_uniform_and_independent():
    one_seed = uniforms([row(seed=3, output=[0] * n) for n in range(3000)])
    many_seeds = uniforms([row(seed=n) for n in range(3000)])
    for numbers in (one_seed, many_seeds):
        assert kstest(numbers, "uniform").pvalue > 1e-3
        assert pearsonr(numbers[:-1], numbers[1:]).pvalue > 1e-3
    assert pearsonr(one_seed, many_seeds).pvalue > 1e-3

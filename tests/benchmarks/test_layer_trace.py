"""Kernels get the step, layer and part that they were launched in, or it is said why not."""

import pytest

from benchmarks.layer_trace import (
    UNKNOWN,
    Kernel,
    carry_over,
    is_marked,
    layers_of,
    read_steps,
    short_name,
    time_kernels,
)


def mark(name, begin, end):
    return {"ph": "X", "cat": "user_annotation", "name": name, "ts": begin, "dur": end - begin}


def launch(correlation, at, name="cudaLaunchKernel", category="cuda_runtime"):
    args = {"correlation": correlation}
    return {"ph": "X", "cat": category, "name": name, "ts": at, "dur": 1, "args": args}


def kernel(correlation, begin, name="k", stream=7, category="kernel", duration=2):
    args = {"correlation": correlation, "stream": stream}
    return {"ph": "X", "cat": category, "name": name, "ts": begin, "dur": duration, "args": args}


def kernels(names, layer=None, part=None):
    return [Kernel(name, 0, 1, layer, part) for name in names]


def test_a_kernel_is_in_the_innermost_part_and_layer_around_its_launch():
    events = [
        mark("step: 0", 0, 100),
        mark("part: front", 1, 5),
        launch(1, 2),
        mark("layer: 4", 10, 60),
        mark("part: attention", 12, 50),
        mark("part: qkv product", 12, 20),
        launch(2, 12, "cuLaunchKernelEx", "cuda_driver"),  # begins together with its range
        launch(3, 20),  # begins when the inner range ends
        launch(4, 55, "cudaMemcpyAsync"),
        launch(5, 70),
        {"ph": "X", "cat": "cpu_op", "name": "part: never", "ts": 69, "dur": 9},
        {"ph": "i", "name": "Record Window End", "ts": 200},
        kernel(5, 150),
        kernel(4, 140, "Memcpy DtoD", category="gpu_memcpy"),
        *(kernel(each, 100 + 10 * each) for each in (1, 2, 3)),
    ]
    (step,) = read_steps(events).steps
    assert [(each.layer, each.part) for each in step] == [
        (None, "front"),
        (4, "qkv product"),
        (4, "attention"),
        (4, None),
        (None, None),
    ]
    assert (step[3].name, step[3].begin, step[3].end) == ("Memcpy DtoD", 140, 142)
    assert is_marked(step)


def test_kernels_of_a_graph_are_in_the_step_that_launched_the_graph():
    events = [
        mark("step: 10", 20, 30),
        mark("step: 9", 0, 10),
        launch(1, 5, "cudaGraphLaunch"),
        launch(2, 25, "cudaGraphLaunch"),
        *(kernel(1, at, f"a{at}") for at in (12, 8)),
        *(kernel(2, at, f"b{at}") for at in (31, 29)),
    ]
    read = read_steps(events)
    names = [[each.name for each in step] for step in read.steps]
    assert names == [["a8", "a12"], ["b29", "b31"]]
    assert not any(map(is_marked, read.steps))
    assert read.notes == []


def test_what_is_left_out_is_said():
    events = [
        mark("step: 0", 0, 10),
        *(launch(each, each) for each in (1, 2, 3)),
        *(kernel(each, each) for each in (1, 2)),
        kernel(3, 3, "copy to the CPU", stream=9),
        kernel(99, 4, "from before"),
    ]
    read = read_steps(events)
    assert len(read.steps[0]) == 2
    assert read.notes == [
        "1 kernels on another stream are left out, such as 'copy to the CPU'",
        "1 kernels without a launch are left out, such as 'from before'",
    ]


@pytest.mark.parametrize(
    ("events", "found"),
    [
        ([], "the profile has {}, 0 marked ranges"),
        ([mark("step: 0", 0, 9)], "{'user_annotation': 1}, 1 marked ranges, calls {}"),
        ([mark("step: 0", 0, 9), kernel(1, 3)], "1 kernels have no launch, and 0 were"),
        ([launch(1, 2), kernel(1, 3)], "calls {'cudaLaunchKernel': 1}; 0 kernels have no launch"),
        ([launch(1, 2), kernel(1, 3)], "1 were launched outside of steps"),
    ],
)
def test_a_profile_without_steps_says_what_it_has(events, found):
    with pytest.raises(ValueError, match="no kernel was launched in a marked step") as error:
        read_steps(events)
    assert found in str(error.value)


def test_replayed_kernels_get_the_parts_of_the_same_sequence():
    launched = [*kernels("a"), *kernels("bc", 0, "down"), *kernels("bc", 1, "down")]
    marked, difference = carry_over(launched, kernels("abcbc"))
    assert difference is None
    assert [(each.layer, each.part) for each in marked] == [
        (each.layer, each.part) for each in launched
    ]


def test_a_replayed_kernel_that_was_not_launched_is_unknown_but_keeps_its_layer():
    launched = [*kernels("bc", 0, "down"), *kernels("bc", 1, "down")]
    marked, difference = carry_over(launched, kernels("bxcbcx"))
    assert [(each.layer, each.part) for each in marked] == [
        (0, "down"),
        (0, UNKNOWN),
        (0, "down"),
        (1, "down"),
        (1, "down"),
        (None, UNKNOWN),
    ]
    assert difference == (
        "the graph replays 6 kernels, of which 4 are among the 4 that are launched without it; "
        "kernel 1 is 'x' instead of 'c'"
    )


def test_copies_that_a_graph_names_differently_count_as_equal():
    launched = kernels(["Memcpy DtoD (Device -> Device)", "Memset (Device)", "b"], 0, "front")
    marked, difference = carry_over(launched, kernels(["memcpy32_post", "Memset (Unknown)", "b"]))
    assert difference is None
    assert [each.part for each in marked] == ["front"] * 3
    assert marked[0].name == "memcpy32_post"


def test_kernels_that_a_graph_lacks_are_missed():
    _, difference = carry_over(kernels("abc"), kernels("ab"))
    assert difference is not None
    assert difference.endswith("kernel 2 is missing instead of 'c'")


def test_times_and_pauses_add_up_to_the_step_even_if_kernels_overlap():
    spans = [(0, 10), (12, 20), (15, 30), (16, 18), (31, 32)]
    times = time_kernels([Kernel("k", begin, end, 0, None) for begin, end in spans])
    assert [each.pause for each in times] == [0, 2, 0, 0, 1]
    assert [each.microseconds for each in times] == [10, 8, 10, 0, 1]
    assert sum(each.pause + each.microseconds for each in times) == 32


def test_a_layer_has_all_of_its_kernels_even_if_one_between_is_unknown():
    step = [*kernels("ab", 0), *kernels("x"), *kernels("c", 0), *kernels("a", 1)]
    layers = layers_of(time_kernels(step))
    assert {number: len(each) for number, each in layers.items()} == {0: 3, 1: 1}


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("_add_norm_kernel", "_add_norm_kernel"),
        ("void at::native::foo<4, at::native::Fill<long>, std::array<char*, 1ul> >(int)", "foo"),
        ("void at::native::(anonymous namespace)::topk<float>(int)", "topk"),
        ("ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgs)",
         "ncclDevKernel_AllReduce_Sum_bf16_RING_LL"),
        ("a_name_of_more_than_forty_characters_is_cut", "a_name_of_more_than_forty_characters_is_"),
        ("Memcpy DtoD (Device -> Device)", "Memcpy DtoD (Device -> Device)"),
    ],
)  # fmt: skip
def test_names_are_shortened_to_the_function(name, short):
    assert short_name(name) == short

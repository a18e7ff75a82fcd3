"""The count of tokens per step has the steps with guesses, and no others."""

from types import SimpleNamespace

from benchmarks.speculation_tokens import Count, prompts


def test_steps_without_guesses_are_not_counted():
    count = Count()
    prefill = SimpleNamespace(num_guesses=0, sampled_tokens=[1])
    three_right = SimpleNamespace(num_guesses=4, sampled_tokens=[1, 2, 3, 4])
    none_right = SimpleNamespace(num_guesses=4, sampled_tokens=[1])
    count(SimpleNamespace(scheduled=[prefill, three_right]))
    count(SimpleNamespace(scheduled=[none_right]))
    assert (count.tokens, count.steps) == (5, 2)


def test_the_prompts_are_as_many_as_the_course_says():
    assert len(prompts()) == 14

from benchmarks import prompt_cost

RUN = ["--prompts", "3", "--runs", "2", "--shared", "32", "--own", "16"]


def test_shared_and_separate_prompts_are_measured(tmp_path):
    costs = prompt_cost.main([*RUN, "--results", str(tmp_path)])["costs"]
    lengths = [(cost["num_shared"], cost["num_own"]) for cost in costs]
    assert lengths == [(32, 16), (0, 48), (0, 16)]
    assert (tmp_path / "prompt_cost.json").exists()


def test_prompts_share_what_the_table_says():
    one, other = prompt_cost.make_prompts(count=2, num_shared=32, num_own=16)
    assert one[:32] == other[:32]
    assert one[32:] != other[32:]

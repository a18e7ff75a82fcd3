import pytest
import torch

from benchmarks import cpu_vs_transformers
from benchmarks.contenders import Job, Ours, make_jobs
from benchmarks.models import SHAPES, write_random_model

TINY = {
    **SHAPES["smollm2-135m"],
    "vocab_size": 512,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
}
RUN = ["--num-requests=5", "--prompt-lengths", "1", "40", "--output-lengths", "2", "20"]
RUN += ["--threads=1", "--repeats=2"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    write_random_model(folder, TINY)
    return folder


@pytest.fixture(scope="module")
def results(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    results = cpu_vs_transformers.main([f"--model={model}", *RUN, f"--results={folder}"])
    assert (folder / f"cpu_vs_transformers_{model.name}.json").exists()
    return results


def test_all_contenders_give_the_same_tokens(results):
    names = ["minimal-vllm", "transformers, batches of 5", "transformers, 1 by 1"]
    assert [score["name"] for score in results["scores"]] == names
    assert [score["num_different"] for score in results["scores"]] == [0, 0, 0]


def test_ratios_are_those_of_each_repeat(results):
    ours, *others = results["scores"]
    assert ours["speedup_of_ours"] == [1, 1]
    for other in others:
        pairs = zip(other["seconds"], ours["seconds"], strict=True)
        assert other["speedup_of_ours"] == [his / own for his, own in pairs]


def test_no_second_of_a_run_is_in_two_parts(results):
    run = sum(each["seconds"] for each in results["steps"].values())
    parts = [part["seconds"] for part in results["parts"]]
    assert all(seconds > 0 for seconds in parts)
    assert 0 < sum(parts) <= run


def test_different_tokens_are_counted():
    class Constant:
        def __init__(self, name, token):
            self.name, self.token = name, token

        def complete(self, jobs):
            return [[self.token * len(job.prompt)] * job.num_tokens for job in jobs]

    jobs = [Job([], 2), Job([1], 2), Job([1, 2], 2)]
    contenders = [Constant("a", 1), Constant("b", 1), Constant("c", 2)]
    scores = cpu_vs_transformers.compare(contenders, jobs, repeats=1)
    assert [score.num_different for score in scores] == [0, 0, 2]


def test_a_repeat_finds_nothing_in_the_prefix_cache(model):
    ours = Ours(model, "float32")
    jobs = make_jobs(3, TINY["vocab_size"], (40, 40), (2, 2), seed=0)
    first = ours.complete(jobs)
    assert ours.complete(jobs) == first
    assert ours.steps[-1].prefix_hits == 0


def test_random_models_do_not_repeat_one_token(results, model):
    (tokens,) = Ours(model, "float32").complete([Job([1, 2, 3], 40)])
    assert len(set(tokens)) > 10


def test_the_number_of_threads_is_set(results):
    assert torch.get_num_threads() == 1

"""Small steps are computed by one thread, larger ones by all."""

import threading

import pytest
import torch

from minimal_vllm import LLM, SamplingParams
from minimal_vllm.attention import tiled_step
from minimal_vllm.attention.long_prompt import LongPrompt
from minimal_vllm.device.threads import OneThread
from minimal_vllm.model.decoder import Decoder
from minimal_vllm.runner import threads
from minimal_vllm.server import run
from minimal_vllm.server.config import ServerConfig

SHORT, LONG = {"prompt_token_ids": [7]}, {"prompt_token_ids": list(range(5, 900))}


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def used(monkeypatch):
    """Pairs of a method's name and the number of threads that it was called with."""
    seen = []

    def watch(name):
        method = getattr(Decoder, name)

        def watched(*arguments, **options):
            seen.append((name, torch.get_num_threads()))
            return method(*arguments, **options)

        monkeypatch.setattr(Decoder, name, watched)

    watch("forward")
    watch("logits")
    return seen


def generate(llm, prompt, num_tokens=1):
    params = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)
    (output,) = llm.generate([prompt], params, use_tqdm=False)
    return output.outputs[0].token_ids


@pytest.mark.usefixtures("three_threads")
def test_a_prompt_takes_all_threads_and_a_single_token_one(used):
    llm = LLM(device="cpu")
    generate(llm, LONG, 2)
    assert used[0] == ("forward", 3)
    del used[:]
    generate(llm, SHORT, 2)
    assert used[0] == used[2] == ("forward", 1)
    assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("three_threads")
def test_a_large_vocabulary_takes_all_threads_for_the_logits_alone(used, monkeypatch):
    llm = LLM(device="cpu")
    runner = llm.engine._runner
    monkeypatch.setattr(runner._threads, "_head", threads.WORTH_WAKING)
    generate(llm, SHORT)
    assert used == [("forward", 1), ("logits", 3)]
    del used[:]
    monkeypatch.setattr(runner._threads, "_head", 1)
    monkeypatch.setattr(runner._threads, "_matrix", threads.WORTH_WAKING)
    generate(llm, SHORT)
    assert used == [("forward", 3), ("logits", 1)]


@pytest.mark.usefixtures("three_threads")
def test_threads_that_spin_share_smaller_work(monkeypatch):
    sleeping = LLM(device="cpu").engine._runner._threads
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    spinning = LLM(device="cpu").engine._runner._threads
    for chosen, expected in ((sleeping, 1), (spinning, 3)):
        monkeypatch.setattr(chosen, "_matrix", threads.WORTH_SHARING / 10)
        with chosen.for_layers(2):
            assert torch.get_num_threads() == expected
        assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("three_threads")
def test_all_threads_compute_again_after_an_error():
    with pytest.raises(ZeroDivisionError), OneThread(alone=True):
        torch.get_num_threads() / (torch.get_num_threads() - 1)
    assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize(("policy", "expected"), [("passive", 1), ("active", 3)])
def test_attention_of_single_tokens_is_computed_by_one_thread_unless_others_spin(
    monkeypatch, policy, expected
):
    monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    llm = LLM(device="cpu")
    monkeypatch.setattr(llm.engine._runner._threads, "_matrix", threads.WORTH_WAKING)
    seen, attend = set(), tiled_step.TiledStep._attend

    def watched(self, q, *arguments):
        tokens = "one" if q.shape[1] == 1 else "several"
        seen.add((tokens, torch.get_num_threads()))
        return attend(self, q, *arguments)

    def watched_prompt(self, *arguments):
        seen.add(("several", torch.get_num_threads()))
        attend_prompt(self, *arguments)

    attend_prompt = LongPrompt.attend
    monkeypatch.setattr(tiled_step.TiledStep, "_attend", watched)
    monkeypatch.setattr(LongPrompt, "attend", watched_prompt)
    params = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
    for prompts in ([LONG], [LONG, SHORT]):
        seen.clear()
        llm.generate(prompts, params, use_tqdm=False)
        assert seen == {("one", expected), ("several", 3)}


@pytest.mark.usefixtures("three_threads")
def test_the_number_of_threads_does_not_change_the_tokens():
    tokens = generate(LLM(device="cpu"), LONG, 12)
    torch.set_num_threads(1)
    assert generate(LLM(device="cpu"), LONG, 12) == tokens


def test_a_server_loads_its_model_on_a_cpu_in_a_thread_that_ends(monkeypatch):
    seen = []

    class Fails(LLM):
        def __init__(self, *arguments, **options):
            seen.append(threading.current_thread())
            raise ValueError("no such model")

    monkeypatch.setattr(run, "ServedLLM", Fails)
    with pytest.raises(ValueError, match="no such model"):
        run.load_engine(ServerConfig(), None, device="cpu")
    (thread,) = seen
    assert thread is not threading.main_thread()
    thread.join(10)
    assert not thread.is_alive()

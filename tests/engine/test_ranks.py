"""An engine whose model several processes compute. What each of them computes is tested in
tests/model/test_divided.py; here they are told what to do, and fail."""

import gc
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from datetime import timedelta
from multiprocessing.connection import Connection

import psutil
import pytest
import torch
from click.testing import CliRunner

from minimal_vllm import LLM, SamplingParams, StructuredOutputsParams
from minimal_vllm.cli.main import main
from minimal_vllm.config import EngineConfig
from minimal_vllm.engine.ranks import group, start
from minimal_vllm.engine.ranks.group import GlooRanks
from minimal_vllm.engine.ranks.messages import Setup
from minimal_vllm.runner.failures import RankFailedError, RankLostError

PATIENCE = 120
OPTIONS = {
    "num_gpu_blocks_override": 24,
    "max_model_len": 128,
    "max_num_batched_tokens": 32,
    "max_num_seqs": 8,
}
PROMPTS = [[(7 * i * i + 31 * length + 3) % 250 for i in range(length)] for length in (40, 16, 5)]
BROKEN = StructuredOutputsParams(regex="(")
GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)


@pytest.fixture(scope="module", params=[("phi3", 2), ("olmo3", 4)], ids=str)
def pair(request, checkpoint):
    """An engine whose model several processes compute, and one in this process alone."""
    family, size = request.param
    path = str(checkpoint(family))
    options = OPTIONS | {"num_gpu_blocks_override": 64}
    return LLM(path, tensor_parallel_size=size, **options), LLM(path, **options)


@pytest.fixture(scope="module")
def records():
    return []


@pytest.fixture(scope="module")
def ranks(checkpoint, records):
    """The same with a mixture of experts, which the tests may not break."""
    options = {"model": str(checkpoint("qwen3-moe")), **OPTIONS}
    return LLM(tensor_parallel_size=2, observers=[records.append], **options), LLM(**options)


def children_of(process=None):
    process = psutil.Process() if process is None else process
    return {each for each in process.children() if "minimal_vllm.engine.ranks" in each.cmdline()}


def wait_until(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def run(engine):
    while engine.has_unfinished_requests:
        engine.step()


def tokens(llm, prompts, params):
    outputs = llm.generate(prompts, params, use_tqdm=False)
    return [completion.token_ids for output in outputs for completion in output.outputs]


def test_the_tokens_are_those_of_one_process(pair):
    several, one = pair
    for params in (GREEDY, SamplingParams(max_tokens=6, seed=5, n=2, top_p=0.9), SamplingParams()):
        assert tokens(several, PROMPTS, params) == tokens(one, PROMPTS, params)


def test_log_probabilities_are_those_of_one_process(ranks):
    params = replace(GREEDY, logprobs=3, prompt_logprobs=2)
    found, expected = (llm.generate(PROMPTS[1], params, use_tqdm=False)[0] for llm in ranks)
    for ours, theirs in (
        (found.outputs[0].logprobs, expected.outputs[0].logprobs),
        (found.prompt_logprobs[1:], expected.prompt_logprobs[1:]),
    ):
        for one, other in zip(ours, theirs, strict=True):
            assert one.keys() == other.keys()
            for token_id, each in one.items():
                assert each.logprob == pytest.approx(other[token_id].logprob, abs=1e-3)


def test_constrained_outputs_and_stop_strings_are_those_of_one_process(ranks):
    def texts(**options):
        params = SamplingParams(temperature=0, max_tokens=20, **options)
        outputs = [llm.generate("The rain", params, use_tqdm=False)[0].outputs[0] for llm in ranks]
        assert outputs[0].finish_reason == outputs[1].finish_reason
        return [output.text for output in outputs]

    matching = texts(structured_outputs=StructuredOutputsParams(regex="[a-z]{3} [0-9]{2}"))
    assert matching[0] == matching[1] != ""
    whole = texts()
    stopped = texts(stop=[whole[1][5:7]])
    assert stopped[0] == stopped[1] == whole[0].partition(whole[1][5:7])[0]


def test_a_refused_request_and_an_aborted_one_leave_the_ranks_together(ranks):
    several, one = ranks
    for llm in ranks:
        with pytest.raises(ValueError, match="can't be used"):
            llm.generate("a", SamplingParams(structured_outputs=BROKEN), use_tqdm=False)
        with pytest.raises(ValueError, match="max_model_len"):
            llm.generate([0] * 300, use_tqdm=False)
        llm.engine.add_request("gone", PROMPTS[0], GREEDY)
        llm.engine.step()
        assert llm.engine.abort("gone").finished
        assert llm.engine.abort("unknown") is None
    without_seed = SamplingParams(max_tokens=6)
    assert tokens(several, PROMPTS, without_seed) == tokens(one, PROMPTS, without_seed)


def test_signals_that_all_processes_get_are_left_to_the_first(ranks):
    several, one = ranks
    assert children_of()
    for each in children_of():
        each.send_signal(signal.SIGTERM)
        each.send_signal(signal.SIGINT)
    assert tokens(several, PROMPTS, GREEDY) == tokens(one, PROMPTS, GREEDY)


def test_preempted_requests_give_the_same_tokens(ranks, records):
    several, one = ranks
    prompts = [[first, *PROMPTS[0]] for first in range(8)]  # that share no blocks
    params = replace(GREEDY, max_tokens=60)
    records.clear()
    assert tokens(several, prompts, params) == tokens(one, prompts, params)
    assert any(record.preempted for record in records)


def test_ctrl_c_interrupts_between_steps(ranks, monkeypatch):
    several, one = ranks
    launch = several.engine._runner.launch

    def interrupted(plan):
        os.kill(os.getpid(), signal.SIGINT)
        return launch(plan)

    monkeypatch.setattr(several.engine._runner, "launch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        several.generate(PROMPTS, GREEDY, use_tqdm=False)
    monkeypatch.undo()
    assert not several.engine.has_unfinished_requests
    assert tokens(several, PROMPTS, GREEDY) == tokens(one, PROMPTS, GREEDY)


def test_each_process_reports_its_share_of_the_cache(ranks):
    several, one = ranks
    sizes = [sum(cache.key.nbytes for cache in llm.built.caches) for llm in ranks]
    assert 2 * sizes[0] == sizes[1]
    assert several.built.files.config == one.built.files.config


def test_a_rank_that_is_killed_is_an_error_at_once_and_for_good(checkpoint):
    before, threads = children_of(), torch.get_num_threads()
    llm = LLM(str(checkpoint("llama")), tensor_parallel_size=4, **OPTIONS)
    followers = children_of() - before
    assert len(followers) == 3
    llm.engine.add_request("1", PROMPTS[0], replace(GREEDY, max_tokens=80))
    llm.engine.step()
    killed = min(followers, key=lambda each: each.create_time())
    killed.kill()
    with pytest.raises(RankFailedError, match=r"rank . of .* its process was killed by signal 9"):
        run(llm.engine)
    llm.engine.reset()
    for _ in range(2):
        with pytest.raises(RankFailedError, match="signal 9"):
            llm.generate(PROMPTS, GREEDY, use_tqdm=False)
    wait_until(lambda: not followers & children_of())
    assert torch.get_num_threads() == threads


def test_the_processes_end_with_their_engine_and_not_before(ranks, checkpoint):
    before, path = children_of(), str(checkpoint("llama"))
    llm = LLM(path, tensor_parallel_size=2, **OPTIONS)
    (follower,) = children_of() - before
    assert tokens(llm, PROMPTS, GREEDY) == tokens(LLM(path, **OPTIONS), PROMPTS, GREEDY)
    del llm
    gc.collect()
    assert not follower.is_running()
    assert before <= children_of(), "another engine's"
    assert tokens(ranks[0], PROMPTS[:1], GREEDY)


SCRIPT = """
import sys, time
from minimal_vllm import LLM
llm = LLM(sys.argv[1], tensor_parallel_size=2, num_gpu_blocks_override=64)  # no __main__ guard
llm.generate([[1, 2, 3]], use_tqdm=False)
print("ready", flush=True)
time.sleep(1000)
"""


def test_the_processes_end_if_that_of_rank_0_is_killed(checkpoint):
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, checkpoint("llama")], stdout=subprocess.PIPE, text=True
    ) as script:
        assert script.stdout.readline() == "ready\n"
        followers = children_of(psutil.Process(script.pid))
        script.kill()
    assert len(followers) == 1
    wait_until(lambda: not any(each.is_running() for each in followers))


FAILING = """
import sys
from minimal_vllm.attention.reference import ReferenceAttention

class {kind}(ReferenceAttention):
    def {method}:
        if "minimal_vllm.engine.ranks" in " ".join(sys.orig_argv):
            raise {error}
        {result}
"""


def write_attention(folder, kind, method, error, result):
    path = folder / f"{kind.lower()}.py"
    path.write_text(FAILING.format(kind=kind, method=method, error=error, result=result))
    return f"{path}:{kind}"


def test_a_rank_that_can_not_be_built_says_why(checkpoint, tmp_path):
    method, result = "__init__(self, device)", "super().__init__(device)"
    attention = write_attention(tmp_path, "Picky", method, "ValueError('no room')", result)
    path, before = str(checkpoint("llama")), children_of()
    with pytest.raises(ValueError, match=r"rank 1 of those .* has failed: no room"):
        LLM(path, tensor_parallel_size=2, attention_backend=attention, **OPTIONS)
    assert children_of() == before


@pytest.mark.parametrize("is_told", [False, True])
def test_a_process_ends_silently_if_rank_0_ends_while_it_starts(tmp_path, is_told):
    ours, theirs = socket.socketpair()
    with theirs, Connection(ours.detach()) as leader:
        if is_told:
            leader.send(Setup(EngineConfig(model="any"), 1, tmp_path, 1))
        leader.close()
        ended = subprocess.run(
            [sys.executable, "-m", "minimal_vllm.engine.ranks", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            capture_output=True,
            timeout=PATIENCE,
        )
    assert (ended.returncode, ended.stderr) == (1, b"")


def test_a_step_that_fails_in_one_rank_ends_the_engine(checkpoint, tmp_path):
    method, result = "plan(self, batch)", "return super().plan(batch)"
    attention = write_attention(tmp_path, "Weak", method, "RuntimeError('too hot')", result)
    path = str(checkpoint("llama"))
    llm = LLM(path, tensor_parallel_size=2, attention_backend=attention, **OPTIONS)
    with pytest.raises(RankFailedError, match=r"rank 1 .*: a step failed: RuntimeError: too hot"):
        llm.generate(PROMPTS, GREEDY, use_tqdm=False)


def test_a_process_that_can_not_start_is_an_error(checkpoint, monkeypatch):
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(RankFailedError, match=r"rank 1 .* its process ended with status 1"):
        LLM(str(checkpoint("llama")), tensor_parallel_size=2, **OPTIONS)
    result = CliRunner().invoke(main, ["generate", "--tensor-parallel-size=2", "a"])
    assert result.exit_code == 1
    assert re.fullmatch("minimal-vllm: error: rank 1 .* ended with status 1\n", result.stderr)


def test_a_rank_that_finds_no_other_fails_after_a_timeout(tmp_path, monkeypatch):
    monkeypatch.setattr(group, "TIME_TO_MEET", timedelta(seconds=0.2))
    with pytest.raises(RankLostError):
        GlooRanks(tmp_path, 0, 2)


def test_impossible_options_are_rejected_before_a_process_starts(checkpoint, monkeypatch):
    path = str(checkpoint("llama"))
    monkeypatch.setattr(subprocess, "Popen", None)
    with pytest.raises(ValueError, match="a divisor or a multiple of the model's 2 key-value"):
        LLM(path, tensor_parallel_size=3)
    with pytest.raises(ValueError, match=r"give attention_backend as 'FILE\.py:CLASS'"):
        LLM(path, tensor_parallel_size=2, attention_backend=object)
    with pytest.raises(ValueError, match="tensor_parallel_size: should be greater than or equal"):
        EngineConfig(model=path, tensor_parallel_size=0)
    monkeypatch.setattr(start, "choose_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    with pytest.raises(ValueError, match="is 4, but PyTorch finds 3 GPUs here, and each rank"):
        LLM(path, tensor_parallel_size=4)

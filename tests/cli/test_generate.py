import json

import pytest
from checkpoints import write_checkpoint, write_json
from click.testing import CliRunner

from minimal_vllm import SamplingParams
from minimal_vllm.cli.main import main

PROMPT = "the inn and the"
GREEDY = ("--temperature=0", "--max-tokens=12", "--ignore-eos")
GREEDY_PARAMS = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)


def expected_texts(llm, *prompts):
    outputs = llm.generate(list(prompts), GREEDY_PARAMS, use_tqdm=False)
    return [output.outputs[0].text for output in outputs]


def json_lines(result):
    assert result.exit_code == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_one_completion_is_all_that_is_printed(run, llm):
    result = run("generate", *GREEDY, PROMPT)
    assert (result.stdout, result.stderr) == (expected_texts(llm, PROMPT)[0] + "\n", "")


def test_a_stop_string_is_never_streamed(run, llm):
    text = expected_texts(llm, PROMPT)[0]
    result = run("generate", *GREEDY, f"--stop={text[3:6]}", PROMPT)
    assert result.stdout == text[: text.index(text[3:6])] + "\n"


def test_a_piped_prompt_is_completed(run, llm):
    result = run("generate", *GREEDY, stdin=PROMPT + "\n")
    assert result.stdout == expected_texts(llm, PROMPT)[0] + "\n"


def test_several_prompts_are_printed_in_their_order_with_headers(run, llm):
    first, second = expected_texts(llm, PROMPT, "on")
    result = run("generate", *GREEDY, PROMPT, "on")
    assert result.stdout == (
        f"==> prompt 1 of 2 <==\n{PROMPT}{first}\n\n==> prompt 2 of 2 <==\non{second}\n\n"
    )
    assert result.stderr == ""  # no progress bar but on a terminal


def test_each_of_n_completions_has_a_header(run):
    result = run("generate", "--n=2", "--max-tokens=2", PROMPT)
    assert "==> prompt 1 of 1, completion 1 <==" in result.stdout
    assert "==> prompt 1 of 1, completion 2 <==" in result.stdout


def test_json_has_a_line_for_each_prompt(run, llm):
    first, second = json_lines(run("generate", "--json", *GREEDY, PROMPT, "on"))
    expected = llm.generate([PROMPT, "on"], GREEDY_PARAMS, use_tqdm=False)
    assert first == {
        "request_id": "0",
        "prompt": PROMPT,
        "prompt_token_ids": expected[0].prompt_token_ids,
        "outputs": [
            {
                "index": 0,
                "text": expected[0].outputs[0].text,
                "token_ids": expected[0].outputs[0].token_ids,
                "finish_reason": "length",
                "stop_reason": None,
            }
        ],
        "num_cached_tokens": 0,
    }
    assert (second["request_id"], second["prompt"]) == ("1", "on")


def test_json_has_the_logprobs_that_were_asked_for(run):
    (line,) = json_lines(
        run("generate", "--json", *GREEDY, "--logprobs=2", "--prompt-logprobs=0", PROMPT)
    )
    (output,) = line["outputs"]
    assert len(output["logprobs"]) == 12
    for token_id, logprobs in zip(output["token_ids"], output["logprobs"], strict=True):
        assert logprobs[str(token_id)]["rank"] == 1
        assert len(logprobs) == 2
    assert output["cumulative_logprob"] < 0
    assert [each is None for each in line["prompt_logprobs"]][:2] == [True, False]


def test_logprobs_without_json_are_rejected(run):
    result = run("generate", "--logprobs=2", PROMPT)
    assert result.exit_code == 2
    assert "need --json" in result.stderr


def test_prompts_of_a_file_may_be_token_ids(run, tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt_token_ids": [5, 6, 7]}\n{"prompt": "on"}\n')
    first, second = json_lines(run("generate", "--json", f"--input={path}"))
    assert (first["prompt"], first["prompt_token_ids"]) == (None, [5, 6, 7])
    assert second["prompt"] == "on"


def test_without_a_tokenizer_token_ids_are_printed(run, tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt_token_ids": [5, 6, 7]}\n')
    result = run("generate", "--skip-tokenizer-init", "--max-tokens=3", f"--input={path}")
    assert result.exit_code == 0, result.stderr
    assert len(json.loads(result.stdout.splitlines()[1])) == 3


def test_stats_are_one_line_on_standard_error(run):
    result = run("generate", "--stats", *GREEDY, PROMPT)
    assert result.stderr.startswith("12 tokens in ")
    assert " of 64 blocks at most, " in result.stderr
    assert result.stderr.count("\n") == 1


def test_the_model_s_generation_config_comes_before_defaults_and_after_options(tmp_path):
    model = write_checkpoint(tmp_path / "model")
    write_json(model / "generation_config.json", {"max_new_tokens": 5, "temperature": 0.0})

    def num_tokens(*options):
        arguments = ["generate", "--json", "--ignore-eos", f"--model={model}", *options, PROMPT]
        (line,) = json_lines(CliRunner().invoke(main, arguments))
        return len(line["outputs"][0]["token_ids"])

    assert num_tokens() == 5
    assert num_tokens("--max-tokens=7") == 7
    assert num_tokens("--generation-config=vllm") == 128
    assert num_tokens("--max-tokens=none", "--max-model-len=200") > 128


def test_a_seed_makes_runs_equal(run):
    runs = [run("generate", f"--seed={seed}", "--max-tokens=20", PROMPT) for seed in (1, 1, 2)]
    assert runs[0].stdout == runs[1].stdout != runs[2].stdout


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--max-tokens=0"], "max_tokens: should be greater than or equal to 1, not 0"),
        (["--block-size=0"], "block_size: should be greater than or equal to 1, not 0"),
        (["--min-tokens=200"], "min_tokens (200) must not exceed max_tokens (128)"),
        (["--max-model-len=4"], "the prompt has 8 tokens, but max_model_len is 4"),
        (["--max-model-len=5000"], "max_model_len is 5000, but the model has only 512 positions"),
        (["--stop-token-ids=999"], "stop_token_ids has 999"),
        (["--logprobs=21", "--json"], "logprobs asks for 21, but max_logprobs is 20"),
        (["--model=no/such/model"], "model 'no/such/model' is not a local folder"),
        (["--input=missing.txt"], "missing.txt can't be read: No such file or directory"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(run, arguments, complaint):
    prompt = [] if arguments[0].startswith("--input") else [PROMPT]
    result = run("generate", *arguments, *prompt)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("minimal-vllm: error: " + complaint)
    assert result.stderr.count("\n") == 1


def test_a_mistake_in_sampling_options_costs_no_loading(monkeypatch, run):
    monkeypatch.setattr("minimal_vllm.llm.LLM", None)  # would not be callable
    assert "top_p: should be" in run("generate", "--top-p=2", PROMPT).stderr


def test_an_unknown_option_is_refused_as_click_does(run):
    result = run("generate", "--no-such-option", PROMPT)
    assert result.exit_code == 2
    assert "No such option" in result.stderr


@pytest.mark.parametrize("arguments", [[PROMPT], [PROMPT, "on"], ["--json", PROMPT]])
def test_a_step_that_fails_is_one_line_and_exit_code_1(run, monkeypatch, arguments):
    def fail(self, plan):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("minimal_vllm.runner.plain.PlainRunner.launch", fail)
    result = run("generate", *arguments)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("minimal-vllm: error: ")
    assert result.stderr.splitlines()[-1].endswith("RuntimeError: out of memory")


def test_prompts_are_files_only_if_asked_for(run, tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("on\nin\n")
    lines = json_lines(run("generate", "--json", "--max-tokens=1", f"--input={path}"))
    assert [line["prompt"] for line in lines] == ["on", "in"]
    (line,) = json_lines(run("generate", "--json", "--max-tokens=1", str(path)))
    assert line["prompt"] == str(path)


@pytest.mark.parametrize("command", [["generate", "a"], ["serve", "--port=0"]])
def test_a_cache_that_fits_no_memory_is_one_clear_line(command):
    result = CliRunner().invoke(main, [*command, f"--num-gpu-blocks-override={10**12}"])
    assert result.exit_code == 2
    assert "error: there is not enough memory for the model and its KV cache" in result.stderr
    assert result.stderr.count("\n") == 1

import signal

import pytest
from checkpoints import write_checkpoint, write_json
from click.testing import CliRunner

from minimal_vllm import LLM, SamplingParams
from minimal_vllm.cli.chat import Conversation
from minimal_vllm.cli.main import main
from minimal_vllm.cli.session import Answer
from minimal_vllm.model.config import read_json
from minimal_vllm.server.harmony import HarmonyReader
from minimal_vllm.server.message import CallWriter, ContentReader
from tests.server.scripted import write_scripted_checkpoint

GREEDY = ("--temperature=0", "--max-tokens=12", "--ignore-eos")
GREEDY_PARAMS = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
CUT_OFF = "The answer was cut off after 12 tokens (--max-tokens).\n"


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def answer(llm, *messages):
    (output,) = llm.chat(list(messages), GREEDY_PARAMS, use_tqdm=False)
    return output.outputs[0].text


def test_each_answer_continues_the_whole_conversation(run, llm):
    first = answer(llm, user("the"))
    second = answer(llm, user("the"), assistant(first), user("on and on"))
    result = run("chat", *GREEDY, stdin="the\n\non and on\n")
    assert (result.exit_code, result.stdout) == (0, f"{first}\n{second}\n")


def test_reset_forgets_all_but_the_system_message(run, llm):
    system = {"role": "system", "content": "re"}
    first, second = answer(llm, system, user("the")), answer(llm, system, user("on"))
    result = run("chat", *GREEDY, "--system=re", stdin="the\n/reset\non\n")
    assert result.stdout == f"{first}\n{second}\n"


@pytest.mark.parametrize("ending", ["/exit", "exit", " EXIT ", "quit", "/quit", "/bye", ""])
def test_exit_ends_before_what_follows(run, ending):
    result = run("chat", *GREEDY, stdin=f"{ending}\nthe\n" if ending else "")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")


def test_a_command_that_is_mistyped_is_not_sent_to_the_model(run):
    result = run("chat", *GREEDY, stdin="/rest\n")
    assert result.stdout == ""
    assert result.stderr.startswith("There is no command /rest. /reset ")


def test_an_answer_that_was_cut_off_says_so(run):
    assert run("chat", *GREEDY, stdin="the\n").stderr == CUT_OFF


def test_the_history_comes_from_the_prefix_cache(run):
    long = "the inn and the re on and on " * 3
    result = run("chat", *GREEDY, "--stats", stdin=f"{long}\n{long}\n")
    first, second = [line for line in result.stderr.splitlines() if "prefix cache" in line]
    assert ", 0 % of the prompt" in first
    assert ", 0 % of the prompt" not in second
    assert "12 tokens in" in second


def test_a_conversation_that_no_longer_fits_says_so_and_can_start_over(run, llm):
    long = "x" * 100
    result = run(
        "chat", *GREEDY, "--max-model-len=100", stdin=f"{long}\nthe\n{long}\n/reset\nthe\n"
    )
    assert result.exit_code == 0
    assert result.stdout == 2 * (answer(llm, user("the")) + "\n")
    lines = result.stderr.splitlines()
    assert "its maximum is 100: write a shorter message, or start a new one" in lines[0]
    assert lines[1:] == [CUT_OFF.strip(), lines[2], "Started a new conversation.", CUT_OFF.strip()]
    assert lines[2].startswith("The conversation would have 1")


def test_an_answer_that_fills_the_context_says_so(run):
    result = run("chat", *GREEDY, "--max-model-len=30", stdin="the\n")
    assert result.stderr == (
        "The conversation has reached its maximum of 30 tokens: start a new one with /reset.\n"
    )


def test_ctrl_c_stops_the_answer_and_keeps_the_conversation(model, capsys):
    def press_at_step_4(record):
        if record.step == 4:
            signal.raise_signal(signal.SIGINT)

    llm = LLM(str(model), num_gpu_blocks_override=64, observers=[press_at_step_4])
    free = llm.engine.scheduler.pool.num_free
    before = signal.getsignal(signal.SIGINT)
    conversation = Conversation(llm, GREEDY_PARAMS, system=None)

    conversation.answer("the")
    text = capsys.readouterr().out.removesuffix("\n")
    assert answer(llm, user("the")).startswith(text)
    assert 0 < len(text) < 12
    assert llm.engine.scheduler.pool.num_free == free
    assert signal.getsignal(signal.SIGINT) is before

    conversation.answer("on")
    expected = answer(llm, user("the"), assistant(text), user("on"))
    assert capsys.readouterr().out == expected + "\n"


def test_a_second_ctrl_c_ends_even_a_step_that_hangs(model):
    def press_twice(record):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    llm = LLM(str(model), num_gpu_blocks_override=64, observers=[press_twice])
    with pytest.raises(KeyboardInterrupt):
        Conversation(llm, GREEDY_PARAMS, system=None).answer("the")


def test_a_model_without_a_chat_template_is_refused_at_once(run, tmp_path):
    model = write_checkpoint(tmp_path / "model")
    settings = read_json(model / "tokenizer_config.json")
    del settings["chat_template"]
    write_json(model / "tokenizer_config.json", settings)
    result = run("chat", f"--model={model}", stdin="the\n")
    assert result.exit_code == 2
    assert result.stderr.startswith("minimal-vllm: error: the model has no chat template")


def test_a_chat_template_can_be_given(run, llm):
    template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    (output,) = llm.generate("the", GREEDY_PARAMS, use_tqdm=False)
    result = run("chat", *GREEDY, f"--chat-template={template}", stdin="the\n")
    assert result.stdout == output.outputs[0].text + "\n"


def test_bytes_that_are_no_text_are_one_line(run):
    result = run("chat", stdin=b"\xff\xfe\n")
    assert result.exit_code == 2
    assert result.stderr.startswith("minimal-vllm: error: 'utf-8' codec can't decode")


def test_the_channels_of_gpt_oss_are_not_printed(tmp_path):
    write_scripted_checkpoint(tmp_path, "", "{}", "I went left.", harmony=True)
    command = ["chat", f"--model={tmp_path}", "--num-gpu-blocks-override=64"]
    result = CliRunner().invoke(main, command, input="Which way?\nAnd now?\n")
    assert (result.exit_code, result.stdout) == (0, "I went left.\nI went left.\n")


def test_its_reasoning_is_printed_in_lines_of_its_own_and_forgotten(capsys):
    printed = Answer(HarmonyReader(CallWriter(parallel=True), ContentReader()))
    for piece in ["<|channel|>analysis<|message|>Hm", ".<|end|><|start|>assistant<|chan"]:
        printed.add(piece, is_last=False)
    printed.add("nel|>final<|message|>Left.", is_last=True)
    assert (capsys.readouterr().out, printed.text) == ("Hm.\nLeft.", "Left.")

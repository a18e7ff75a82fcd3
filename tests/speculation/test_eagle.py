"""An EAGLE-3 head guesses what a plain one would, and the text stays the same."""

import json

import pytest
import torch
from checkpoints import FAMILIES
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from minimal_vllm import LLM, SamplingParams
from minimal_vllm.cli.info import gather
from minimal_vllm.config import EngineConfig
from minimal_vllm.demo import DEMO_MODEL_DIR, EAGLE_HEAD_DIR
from minimal_vllm.engine.speculating_scheduler import SpeculatingScheduler
from tests.speculation.eagle_heads import Listener, read_config, write_head, wrong_guesses

pytestmark = pytest.mark.usefixtures("guesses_cost_nothing")


def make(folder, head=None, **options):
    if head is not None:
        config = {"method": "eagle3", "model": str(head), "num_speculative_tokens": 4}
        options["speculative_config"] = config
    options = {"num_gpu_blocks_override": 200, "max_model_len": 200, "block_size": 8, **options}
    return LLM(model=str(folder), skip_tokenizer_init=True, **options)


def token_ids(outputs):
    return [each.token_ids for output in outputs for each in output.outputs]


def prompts_of(*lengths):
    return [{"prompt_token_ids": [(7 * i + 3 * n) % 250 for i in range(n)]} for n in lengths]


HEADS = {
    "published": {},
    "in a pickle": {"is_pickled": True},
    "of all tokens": {"draft_vocab_size": None},
    "with an embedding": {"embedding": True},
    "normalized first": {"norm_before_residual": True},
    "as SGLang says it": {
        "eagle_aux_hidden_state_layer_ids": None,
        "eagle_config": {"eagle_aux_hidden_state_layer_ids": [0, 1, 1]},
    },
}


@pytest.mark.parametrize("name", HEADS)
def test_it_guesses_what_a_plain_one_guesses(checkpoint, tmp_path, monkeypatch, name):
    folder = checkpoint("llama")
    head = write_head(tmp_path / "head", target=read_config(folder), **HEADS[name])
    listener = Listener(monkeypatch)
    counts = iter([4, 3, 0, 0, 1, 4, 2, 0, 4] * 40)
    monkeypatch.setattr(
        SpeculatingScheduler,
        "count_guesses",
        lambda self, plan, entries, guesses: [min(next(counts), len(each)) for each in guesses],
    )
    llm = make(folder, head, max_num_batched_tokens=16, max_num_seqs=8)
    params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
    llm.generate(prompts_of(1, 5, 23, 40), params)
    llm.generate(prompts_of(23, 40), params)  # from the prefix cache

    assert len(listener.guesses) > 40
    assert wrong_guesses(folder, head, listener.guesses) == []


class Taken:
    """A tap that keeps all hidden states."""

    def __init__(self, num_layers):
        self.layers = range(1, num_layers)
        self.hidden = {number: [] for number in self.layers}

    def take(self, hidden, attend):
        for number, states in hidden.items():
            self.hidden[number].append(states.clone())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_hidden_states_are_those_of_transformers(checkpoint, family):
    folder = checkpoint(family)
    llm = make(folder, max_num_batched_tokens=16, max_num_seqs=8, max_model_len=64)
    decoder = llm.built.model.decoder
    decoder.tap = tap = Taken(decoder.config.num_layers)
    (prompt,) = prompts_of(23)
    llm.generate([prompt], SamplingParams(temperature=0, max_tokens=1))

    several = "text_config" in FAMILIES[family]
    auto = AutoModelForImageTextToText if several else AutoModelForCausalLM
    model = auto.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    tokens = torch.tensor([prompt["prompt_token_ids"]])
    with torch.no_grad():
        expected = model(tokens, output_hidden_states=True).hidden_states
    for number, parts in tap.hidden.items():
        torch.testing.assert_close(torch.cat(parts), expected[number][0], rtol=1e-3, atol=1e-4)


# ---- refusals -----------------------------------------------------------------------------------


def rewritten(change):
    """A change of a head's tensors."""

    def apply(folder):
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return apply


def pickled(content):
    """Replace a head's tensors by a pickle, or by bytes."""

    def apply(folder):
        (folder / "model.safetensors").unlink()
        if isinstance(content, bytes):
            (folder / "pytorch_model.bin").write_bytes(content)
        else:
            torch.save(content, folder / "pytorch_model.bin")

    return apply


@pytest.mark.parametrize(
    ("changes", "spoil", "complaint"),
    [
        ({"target_hidden_size": 64}, None, "hidden states of 64 numbers, but the model's have 32"),
        ({"hidden_size": 64}, None, "hidden states of 64 numbers, but the model's have 32"),
        ({"vocab_size": 300}, None, "for a vocabulary of 300 tokens, but the model has 288"),
        ({"target_hidden_size": 32, "hidden_size": 16}, None, "can't use the model's embedding"),
        ({"num_hidden_layers": 2}, None, "has 2 layers, but only heads of one layer"),
        ({"draft_vocab_size": None, "architectures": ["LlamaForCausalLM"]}, None, "EAGLE-1 and 2"),
        ({"eagle_aux_hidden_state_layer_ids": [1, 2, 3]}, None, "the model has 3 layers, of which"),
        ({"eagle_aux_hidden_state_layer_ids": [1, 2]}, None, "must list 3 layers"),
        ({"eagle_aux_hidden_state_layer_ids": [True, 1, 2]}, None, r"not \[True, 1, 2\]"),
        ({"eagle_aux_hidden_state_layer_ids": 5}, None, "must list 3 layers, not 5"),
        (
            {
                "eagle_aux_hidden_state_layer_ids": None,
                "eagle_config": {"eagle_aux_hidden_state_layer_ids": 5},
            },
            None,
            "must list 3 layers, not 5",
        ),
        ({"eagle_aux_hidden_state_layer_ids": None}, None, "after layers 2, 1, 0, but"),
        ({}, rewritten(lambda each: each.pop("norm.weight")), "missing: norm.weight"),
        ({}, rewritten(lambda each: each.pop("d2t")), "has no tensor d2t"),
        ({}, rewritten(lambda each: each["d2t"].add_(200)), "tokens that the model doesn't have"),
        (
            {},
            rewritten(lambda each: each.update(d2t=torch.zeros(3, dtype=torch.int64))),
            "must hold 192 integers",
        ),
        (
            {},
            rewritten(lambda each: each.update({"fc.weight": torch.zeros(32, 64)})),
            "reads 64 numbers of the model",
        ),
        ({}, lambda folder: (folder / "model.safetensors").unlink(), "has neither model.safe"),
        ({}, pickled(b"not a pickle"), "is not a file of tensors"),
        ({}, pickled({"run": print}), "is not a file of tensors"),
        ({}, pickled([1, 2]), "must hold a dictionary of tensors"),
    ],
)
def test_a_head_that_can_not_guess_is_refused_in_one_line(
    checkpoint, tmp_path, changes, spoil, complaint
):
    folder = checkpoint("llama")
    head = write_head(tmp_path / "head", target=read_config(folder), **changes)
    if spoil:
        spoil(head)
    with pytest.raises(ValueError, match=complaint) as raised:
        make(folder, head)
    assert "\n" not in str(raised.value)


def test_a_model_whose_layers_all_have_a_window_is_refused(checkpoint, tmp_path):
    folder = checkpoint("mistral-window")
    head = write_head(tmp_path / "head", target=read_config(folder))
    with pytest.raises(ValueError, match="use the method ngram"):
        make(folder, head)


def test_the_built_in_head_is_not_for_other_models(checkpoint):
    config = {"method": "eagle3", "num_speculative_tokens": 2}
    with pytest.raises(ValueError, match="a head of another model"):
        make(checkpoint("llama"), speculative_config=config)


@pytest.mark.parametrize("changes", [{"method": "draft_model"}, {}])
def test_a_head_given_as_a_draft_model_is_rejected(checkpoint, changes):
    config = {"model": str(EAGLE_HEAD_DIR), "num_speculative_tokens": 2, **changes}
    with pytest.raises(ValueError, match="with the method eagle3"):
        make(checkpoint("llama"), speculative_config=config)


# ---- memory -------------------------------------------------------------------------------------


def test_info_counts_its_weights_its_keys_and_what_it_reads():
    def fit(**options):
        (found, *_) = gather(
            EngineConfig(model=str(DEMO_MODEL_DIR), device="cpu", **options)
        ).devices
        return found

    config = {"method": "eagle3", "num_speculative_tokens": 3}
    without, with_it = fit(), fit(speculative_config=config)
    tensors = load_file(EAGLE_HEAD_DIR / "model.safetensors")
    num_parameters = sum(each.numel() for each in tensors.values() if each.is_floating_point())
    assert with_it.draft_weights == with_it.weights - without.weights == 4 * num_parameters
    shape = json.loads((EAGLE_HEAD_DIR / "config.json").read_text())
    of_token = 4 * (2 * shape["num_key_value_heads"] * shape["head_dim"] + shape["hidden_size"])
    assert with_it.kv_per_token - without.kv_per_token == of_token
    assert with_it.kv_per_block - without.kv_per_block == 16 * of_token
    assert with_it.num_blocks < without.num_blocks

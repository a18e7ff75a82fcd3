"""The training script, run small on a CPU, and what it once made: the two shipped model folders."""

import importlib
import json
import math
import random
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer

from minimal_vllm.demo import DEMO_MODEL_DIR, DRAFT_MODEL_DIR

transformers = pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
corpus = importlib.import_module("training.corpus")
script = importlib.import_module("training.train_demo_model")

TEXTS = [
    'It was late. "Who is there?" she asked—and nobody answered.\n\n"It is I," said he.',
    "  two  spaces, a\ttab, 1897, naïve café, Ελλάδα, 日本語, \x00",
    "👩‍👩‍👧 and 🙂 and a lone \u200b; <|endoftext|> too",
    "",
]
CHAT = [
    {"role": "system", "content": "They sat by the fire."},
    {"role": "user", "content": 'Did he say "no"?'},
    {"role": "assistant", "content": "He did."},
    {"role": "user", "content": "Why?\n"},
]
RENDERED = 'They sat by the fire.\n\n"Did he say \'no\'?"\n\n"He did."\n\n"Why?"\n\n'

# The opening of Jane Austen's "Pride and Prejudice" (1813), which is not in the corpus.
AUSTEN = """\
It is a truth universally acknowledged, that a single man in possession of a good fortune, must be \
in want of a wife.

However little known the feelings or views of such a man may be on his first entering a \
neighbourhood, this truth is so well fixed in the minds of the surrounding families, that he is \
considered as the rightful property of some one or other of their daughters.

"My dear Mr. Bennet," said his lady to him one day, "have you heard that Netherfield Park is let \
at last?"

Mr. Bennet replied that he had not.

"But it is," returned she; "for Mrs. Long has just been here, and she told me all about it."
"""


def write_novel(path: Path, seed: int) -> None:
    """Two chapters of sentences with a pattern that a tiny model can learn."""
    rng = random.Random(seed)
    names, verbs, things = ["Anne", "Kim", "Ruth"], ["saw", "took", "lost"], ["the hat", "a book"]

    def sentence() -> str:
        return f"{rng.choice(names)} {rng.choice(verbs)} {rng.choice(things)}."

    chapters = ["\n".join(f'"{sentence()}" {sentence()}' for _ in range(200)) for _ in range(2)]
    path.write_text("".join(f"CHAPTER {i}\n{text}\n" for i, text in enumerate(chapters)), "utf-8")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a tiny model after 60 steps, and its training log."""
    root = tmp_path_factory.mktemp("training")
    (root / "novels").mkdir()
    for seed, name in enumerate(["One", "Two", "Held"]):
        write_novel(root / "novels" / f"{name}.txt", seed)
    script.prepare_data(root / "novels", root / "data", held_out=("Held",), vocab_size=320)
    recipe = script.Recipe(
        hidden_size=32,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        intermediate_size=64,
        context=64,
        batch_size=8,
    )
    log = script.train(recipe, root / "data", root / "model", minutes=1.0, max_steps=60)
    return root / "model", log


def test_training_learns(trained):
    folder, log = trained
    losses = [record["held_out_loss"] for record in log["history"]]
    assert losses[0] < math.log(320) + 0.5
    assert log["held_out_loss"] < losses[0] - 1.0
    assert log["held_out_loss"] == pytest.approx(min(losses), abs=0.02)  # bfloat16's rounding
    assert json.loads((folder / "training_log.json").read_text()) == log


def test_trained_folder_is_in_the_hubs_format(trained):
    folder, log = trained
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert type(model).__name__ == "Qwen3ForCausalLM"
    assert model.dtype == torch.bfloat16
    assert sum(p.numel() for p in model.parameters()) == log["parameters"]
    assert model.generation_config.do_sample
    assert model.generation_config.eos_token_id == 0
    check_tokenizer(folder)


def test_an_epoch_visits_every_window_once_at_new_places():
    recipe = replace(script.RECIPES["demo"], context=10, batch_size=2)
    stream = torch.arange(10 * 9 + 5, dtype=torch.int32)
    epochs = []
    batches = script.batches(stream, recipe, torch.Generator().manual_seed(1))
    for _ in range(2):
        windows = torch.cat([next(batches) for _ in range(4)])
        assert (windows.diff(dim=1) == 1).all()
        epochs.append({start % 10 for start in windows[:, 0].tolist()})
        assert len(set(windows[:, 0].tolist())) == 8
    assert len(epochs[0]) == len(epochs[1]) == 1
    assert epochs[0] != epochs[1]
    with pytest.raises(ValueError, match="too few"):
        next(script.batches(stream[:15], recipe, torch.Generator()))


def test_dropout_acts_in_training_only():
    model = script.build_model(script.RECIPES["demo"], vocab_size=64)
    windows = torch.arange(32)[None]

    def loss() -> float:
        return float(script.next_token_loss(model, windows).detach())

    assert loss() != loss()
    model.eval()
    assert loss() == loss()


def test_learning_rate_warms_up_and_falls_to_zero():
    factors = [script.learning_rate_factor(step, step / 1000) for step in range(1001)]
    peak = factors.index(max(factors))
    assert peak == script.WARMUP_STEPS - 1
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    assert factors[-1] == 0.0


def test_corpus_becomes_uniform_prose(tmp_path):
    filler = "All the while\nit rained and rained and rained upon them both.\n\n" * 20
    wrapped = """\
THE NOVEL

CHAPTER I

In Fashion

'You are late,' said   he -- and 'tis true that he
had waited _long_. 'I don't , as a rule, like it
at all . . . so.'

'Sorry!'

"""
    path = tmp_path / "novel.txt"
    path.write_text(wrapped + filler, encoding="utf-8")
    (chapter,) = corpus.read_chapters(path)
    assert chapter.split("\n\n")[:3] == [
        '"You are late," said he—and \'tis true that he had waited long. '
        '"I don\'t, as a rule, like it at all... so."',
        '"Sorry!"',
        "All the while it rained and rained and rained upon them both.",
    ]


def check_tokenizer(folder: Path) -> None:
    """Encoding loses and adds nothing, transformers and tokenizers agree, the template renders."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    plain = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in TEXTS:
        ids = tokenizer(text).input_ids
        assert ids == plain.encode(text).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert tokenizer.eos_token_id == tokenizer.bos_token_id == tokenizer.pad_token_id == 0
    assert tokenizer.encode("<|endoftext|>") == [0]
    assert tokenizer.apply_chat_template(CHAT, tokenize=False) == RENDERED
    prompt = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    assert prompt == RENDERED + '"'


@pytest.mark.parametrize(
    ("folder", "max_bytes", "parameters"),
    [(DEMO_MODEL_DIR, 25_000_000, (8e6, 12e6)), (DRAFT_MODEL_DIR, 4_000_000, (1e6, 2e6))],
)
def test_shipped_folder(folder, max_bytes, parameters):
    assert sum(path.stat().st_size for path in folder.iterdir()) <= max_bytes
    with safe_open(folder / "model.safetensors", "pt") as file:
        tensors = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118
    assert all(tensor.dtype == torch.bfloat16 for tensor in tensors)
    assert parameters[0] <= sum(tensor.numel() for tensor in tensors) <= parameters[1]
    check_tokenizer(folder)
    log = json.loads((folder / "training_log.json").read_text())
    assert f"| held-out novels | {log['held_out_loss']:.3f} |" in (folder / "README.md").read_text()


@pytest.mark.parametrize("folder", [DEMO_MODEL_DIR, DRAFT_MODEL_DIR])
def test_shipped_weights_know_english(folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).float()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    windows = tokenizer(AUSTEN, return_tensors="pt").input_ids
    with torch.no_grad():
        loss = script.next_token_loss(model, windows)
    assert loss < 0.5 * math.log(model.config.vocab_size)


def test_shipped_models_share_a_tokenizer():
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (DEMO_MODEL_DIR / name).read_bytes() == (DRAFT_MODEL_DIR / name).read_bytes()

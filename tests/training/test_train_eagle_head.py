"""The training script of the EAGLE-3 head, run small on a CPU, and what it once made."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from minimal_vllm.demo import DEMO_MODEL_DIR, EAGLE_HEAD_DIR
from minimal_vllm.text.tokenizer import Tokenizer
from tests.speculation.eagle_heads import PlainHead
from tests.training.test_train_demo_model import AUSTEN

transformers = pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
script = importlib.import_module("training.train_eagle_head")

RECIPE = script.Recipe(draft_vocab_size=256, intermediate_size=32, window=24, batch_size=4)


@pytest.fixture(scope="module")
def model():
    return transformers.AutoModelForCausalLM.from_pretrained(DEMO_MODEL_DIR, dtype=torch.float32)


@pytest.fixture(scope="module")
def config():
    return json.loads((DEMO_MODEL_DIR / "config.json").read_text())


def test_the_unrolled_head_computes_what_it_will_compute_when_it_guesses(model, config, tmp_path):
    torch.manual_seed(2)
    token_ids = torch.randperm(4096)[: RECIPE.draft_vocab_size].sort().values
    head = script.Head(RECIPE, config, model, token_ids)
    for weight in head.parameters():  # as they are saved
        weight.data = (weight + 0.05 * weight.std() * torch.randn_like(weight)).bfloat16().float()
    script.save(head, RECIPE, config, token_ids, tmp_path)
    plain = PlainHead(tmp_path, model.get_input_embeddings().weight.detach())

    windows = torch.randint(4096, (1, RECIPE.window + 1))
    embedded, states, _ = script.read_states(model, windows, RECIPE)
    with torch.no_grad():
        rounds = [logits[0] for logits in head(embedded, states)]
    for place in (0, 1, 2, 9, 20):
        known, read = windows[0, : place + 2], plain.fuse(states[0, : place + 1])
        for each, logits in enumerate(rounds):
            own = plain.run(known[1:], read)[-1:]
            found = plain.norm(own, "norm") @ plain.weight("lm_head").T
            torch.testing.assert_close(logits[place + each], found[0], rtol=1e-3, atol=1e-3)
            known = windows[0, : place + each + 3]
            read = torch.cat((read, own))


def test_training_learns(tmp_path):
    tokens = np.array(Tokenizer(DEMO_MODEL_DIR).encode(AUSTEN), dtype=np.uint16)
    for split in ("train", "held_out"):
        np.save(tmp_path / f"{split}.npy", tokens)
    log = script.train(RECIPE, tmp_path, tmp_path / "head", minutes=1.0, max_steps=40)
    first, *_, last = (each["right"] for each in log["history"])
    assert last[0] > first[0] + 0.1
    assert json.loads((tmp_path / "head" / "training_log.json").read_text())["history"]


def test_shipped_head():
    assert sum(path.stat().st_size for path in EAGLE_HEAD_DIR.iterdir()) <= 4_000_000
    log = json.loads((EAGLE_HEAD_DIR / "training_log.json").read_text())
    with safe_open(EAGLE_HEAD_DIR / "model.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    floats = [each for each in tensors.values() if each.is_floating_point()]
    assert all(each.dtype == torch.bfloat16 for each in floats)
    assert sum(each.numel() for each in floats) == log["parameters"]
    shares = ", ".join(f"{share:.2f}" for share in log["history"][-1]["right"])
    assert shares in (EAGLE_HEAD_DIR / "README.md").read_text()


def test_shipped_head_knows_its_model(model):
    recipe = script.Recipe()
    windows = torch.tensor([Tokenizer(DEMO_MODEL_DIR).encode(AUSTEN)])
    plain = PlainHead(EAGLE_HEAD_DIR, model.get_input_embeddings().weight.detach())
    _, states, logits = script.read_states(model, windows, recipe)
    own = plain.run(windows[0, 1:], plain.fuse(states[0]))
    guesses = (plain.norm(own, "norm") @ plain.weight("lm_head").T).argmax(-1)
    guesses += plain.weights["d2t"][guesses]
    assert (guesses == logits[0].argmax(-1)).float().mean() > 0.4

"""Writes the README.md of a trained model folder: numbers from its log, samples from its weights.

python -m training.model_card MODEL                               # the demo model
python -m training.model_card DRAFT --target MODEL --data DATA    # its draft model
"""

import json
import math
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3ForCausalLM, set_seed

from training.train_demo_model import HELD_OUT

PROMPTS = (
    "It was a dark and stormy night, and",
    'The door opened, and a young lady in grey came in. "I beg your pardon,"',
    "The sea was very calm that morning.",
)
CHAT = [{"role": "user", "content": "Good evening, sir. Have you come far?"}]
SAMPLE_TOKENS = 160

CARD = """\
---
license: mit
language: en
library_name: transformers
pipeline_tag: text-generation
---

# {title}

{purpose}

A Qwen3-architecture language model of {parameters:,} parameters (bfloat16): {num_layers} layers,
hidden size {hidden_size}, query heads {num_heads}, key/value heads {num_kv_heads}, head size 64,
intermediate size {intermediate_size}, tied embeddings, context {context}, and a byte-level BPE
vocabulary of {vocab_size} learned from the same text. It continues prose in the manner of English
novels of 1839 to 1930.

Limits: its sentences are mostly grammatical, its paragraphs rarely make sense. It knows nothing,
follows no instructions, and repeats the prejudices of its sources. It is here to show an engine at
work, not for its words.

## Training
- Text: 93 novels ({train_bytes:.1f} MB, {train_tokens:.2f} million tokens) of the corpus
  "100 English Novels" of the Computational Stylistics Group, in the public domain in the United
  States. The text is not part of this repository. Weights and tokenizer are under the MIT license.
- Run: {minutes} minutes on one {device}, {steps:,} steps, {tokens_seen:.0f} million tokens,
  {epochs:.0f} epochs. Kept: the weights of minute {kept_minutes} (epoch {kept_epochs:.0f}), where
  the held-out loss was lowest. Demo and draft model shared the GPU while the draft was trained.
- Muon and AdamW, peak learning rate {learning_rate} (chosen by short trial runs), linear
  decay to zero, weight decay {weight_decay}, dropout {dropout}, {batch_size} windows of {context}
  tokens per step, seed {seed}. `training_log.json` has the whole history.
- Commands: `python -m training.train_demo_model prepare NOVELS DATA`, then
  `python -m training.train_demo_model train DATA OUT {options}`.
  A run bounded by time is not repeatable bit for bit.

| text | loss per token (nats) | bits per byte |
|---|---|---|
| training novels | {train_loss:.3f} | {train_bpb:.3f} |
| held-out novels | {held_out_loss:.3f} | {held_out_bpb:.3f} |

Measured on these bfloat16 weights, in windows of {context} tokens: {held_out_tokens:,} held-out
tokens, and 256 windows spread over the training text.

Held out whole: {held_out_titles}.
The weights were chosen by this loss, among {evaluations} evaluations that differ little at the end.
Other novels by the same authors are in the training text: this measures new books, not new authors.

{rest}"""

DEMO_REST = """\
## Chat template
The model has read no chats. The template writes a conversation as a novel's dialogue: one paragraph
in double quotes per message, the system message before it as narration, and an opened quotation
mark where the reply begins. Stop at `"` to get one speech.

## Samples
Unedited, the first ones drawn: temperature 0.9, top-p 0.9, seed 0, {tokens} tokens. The prompts are
in bold.

{samples}
"""

DRAFT_REST = """\
## As a draft
It has the demo model's tokenizer. On held-out text, at temperature 1, the demo model accepts a
token proposed by this model with probability {acceptance:.2f} (the mean of Σ min(p, q)); their most
likely tokens agree {agreement:.0%} of the time.
"""


def bits_per_byte(log: dict[str, Any], split: str) -> float:
    """The split's loss per token, spread over the bytes of its text."""
    sizes = log["corpus"][split]
    return float(log[f"{split}_loss"] / math.log(2) * sizes["tokens"] / sizes["bytes"])


def write_samples(model: Qwen3ForCausalLM, tokenizer: Any) -> str:
    """One sample per prompt and one chat reply, as Markdown quotations."""
    chat = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    samples = []
    for prompt in (*PROMPTS, chat):
        set_seed(0)
        encoded = tokenizer(prompt, return_tensors="pt")
        output = model.generate(**encoded, max_new_tokens=SAMPLE_TOKENS, top_k=0)
        continuation = tokenizer.decode(output[0, encoded.input_ids.shape[1] :])
        bold = "\n\n".join(f"**{paragraph}**" for paragraph in prompt.split("\n\n"))
        lines = (bold + continuation).split("\n")
        samples.append("\n".join(f"> {line}".rstrip() for line in lines))
    return "\n\n---\n\n".join(samples)


@torch.no_grad()
def acceptance(
    target: Qwen3ForCausalLM, draft: Qwen3ForCausalLM, windows: Tensor
) -> tuple[float, float]:
    """How often `target` accepts a token of `draft`, and how often their first choices agree.

    Speculative sampling accepts with probability Σ min(p, q) over the vocabulary. `windows` is
    [n, tokens].
    """
    accepted, agreed = [], []
    for window in windows:
        p, q = (model(window[None]).logits.float().softmax(-1) for model in (target, draft))
        accepted.append(torch.minimum(p, q).sum(-1).mean())
        agreed.append((p.argmax(-1) == q.argmax(-1)).float().mean())
    return float(torch.stack(accepted).mean()), float(torch.stack(agreed).mean())


def format_card(log: dict[str, Any], **texts: str) -> str:
    """Fills CARD from the training log; `texts` are its title, purpose, options and rest."""
    last = log["history"][-1]
    kept = min(log["history"], key=lambda record: record["held_out_loss"])
    sizes = log["corpus"]
    return CARD.format(
        **texts,
        **log["recipe"],
        parameters=log["parameters"],
        vocab_size=log["vocab_size"],
        device=log["device"],
        minutes=last["minutes"],
        steps=last["step"],
        evaluations=len(log["history"]),
        epochs=last["epochs"],
        tokens_seen=last["epochs"] * sizes["train"]["tokens"] / 1e6,
        kept_minutes=kept["minutes"],
        kept_epochs=kept["epochs"],
        train_bytes=sizes["train"]["bytes"] / 1e6,
        train_tokens=sizes["train"]["tokens"] / 1e6,
        held_out_tokens=sizes["held_out"]["tokens"],
        train_loss=log["train_loss"],
        held_out_loss=log["held_out_loss"],
        train_bpb=bits_per_byte(log, "train"),
        held_out_bpb=bits_per_byte(log, "held_out"),
        held_out_titles=",\n".join(HELD_OUT.values()),
    )


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--target", type=click.Path(exists=True, path_type=Path), help="FOLDER drafts for it."
)
@click.option("--data", type=click.Path(exists=True, path_type=Path), help="From `prepare`.")
def main(folder: Path, target: Path | None, data: Path | None) -> None:
    """Writes FOLDER/README.md."""
    log = json.loads((folder / "training_log.json").read_text(encoding="utf-8"))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    minutes = f"--minutes {log['history'][-1]['minutes']}"
    if target and data:
        held_out = np.load(data / "held_out.npy").astype(np.int64)
        windows = torch.from_numpy(held_out[: 32 * 1024]).view(32, 1024)
        target_model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
        rate, agreement = acceptance(target_model, model, windows)
        card = format_card(
            log,
            title="The draft model",
            purpose="The small model that drafts for the demo model in speculative decoding.",
            options=f"--model draft {minutes}",
            rest=DRAFT_REST.format(acceptance=rate, agreement=agreement),
        )
    else:
        samples = write_samples(model, tokenizer)
        card = format_card(
            log,
            title="The demo model",
            purpose="The model that comes with the engine, so that it runs without a download.",
            options=minutes,
            rest=DEMO_REST.format(tokens=SAMPLE_TOKENS, samples=samples),
        )
    (folder / "README.md").write_text(card, encoding="utf-8")


if __name__ == "__main__":
    main()

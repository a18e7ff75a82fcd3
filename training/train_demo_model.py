"""Trains the built-in demo model, or its draft model, on a folder of novels.

python -m training.train_demo_model prepare NOVELS DATA    # text -> tokenizer, token streams
python -m training.train_demo_model train DATA OUT         # token streams -> model folder

The run is bounded by time, not by steps: the learning rate falls linearly to zero over the minutes
given, however fast the machine is. Twenty million tokens are few, so they are read dozens of times;
dropout, weight decay and fresh window boundaries in every epoch delay the overfitting, and the
weights with the lowest held-out loss are the ones that are kept.
"""

import dataclasses
import json
import math
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from training.corpus import read_chapters
from training.tokenizer import END_OF_TEXT, save_tokenizer, train_tokenizer

HELD_OUT = {  # never seen in training; other novels by the same authors are
    "Burnett_Princess_1905": "A Little Princess (Burnett)",
    "Doyle_Hound_1902": "The Hound of the Baskervilles (Doyle)",
    "Forster_View_1908": "A Room with a View (Forster)",
    "Stevenson_Treasure_1883": "Treasure Island (Stevenson)",
    "Trollope_Warden_1855": "The Warden (Trollope)",
}
VOCAB_SIZE = 4096
HEAD_DIM = 64
END_OF_TEXT_ID = 0
WARMUP_STEPS = 100
EVALUATIONS = 20


@dataclass(frozen=True)
class Recipe:
    """The shape of a model and how it is trained; the defaults are the demo model's."""

    hidden_size: int = 384
    num_layers: int = 6
    num_heads: int = 6
    num_kv_heads: int = 2
    intermediate_size: int = 1024
    context: int = 2048  # tokens per training window, and the model's longest sequence
    batch_size: int = 64  # windows per step
    learning_rate: float = 6e-3
    weight_decay: float = 0.2
    dropout: float = 0.1
    seed: int = 0


RECIPES = {
    "demo": Recipe(),
    # Speculative decoding pays for a draft by its layers, so it is wide rather than deep.
    "draft": Recipe(
        hidden_size=192,
        num_layers=2,
        num_heads=3,
        num_kv_heads=1,
        intermediate_size=512,
        weight_decay=0.1,
        dropout=0.0,
    ),
}


# ---------------------------------------------------------------------------------------- the data


def prepare_data(
    novels: Path, data: Path, held_out: Collection[str] = HELD_OUT, vocab_size: int = VOCAB_SIZE
) -> None:
    """Writes the tokenizer and one token stream per split; each chapter ends in END_OF_TEXT."""
    data.mkdir(parents=True, exist_ok=True)
    chapters: dict[str, list[str]] = {"train": [], "held_out": []}
    for path in sorted(novels.glob("*.txt")):
        chapters["held_out" if path.stem in held_out else "train"] += read_chapters(path)
    tokenizer = train_tokenizer(chapters["train"], vocab_size)
    tokenizer.save(str(data / "tokenizer.json"))
    sizes = {}
    for split, texts in chapters.items():
        encoded = tokenizer.encode_batch_fast([text + END_OF_TEXT for text in texts])
        tokens = np.concatenate([np.array(chapter.ids, dtype=np.uint16) for chapter in encoded])
        np.save(data / f"{split}.npy", tokens)
        sizes[split] = {"tokens": len(tokens), "bytes": sum(len(text.encode()) for text in texts)}
    (data / "sizes.json").write_text(json.dumps(sizes, indent=2) + "\n", encoding="utf-8")


def batches(tokens: Tensor, recipe: Recipe, generator: torch.Generator) -> Iterator[Tensor]:
    """Yields windows [batch_size, context + 1] for ever.

    An epoch is one pass over the stream in random order; each cuts it at other places, so that no
    token is always the first of its window.
    """
    offsets = torch.arange(recipe.context + 1, device=tokens.device)
    while True:
        shift = int(torch.randint(recipe.context, (1,), generator=generator))
        starts = torch.arange(shift, len(tokens) - recipe.context, recipe.context)
        if len(starts) < recipe.batch_size:
            raise ValueError(f"{len(tokens)} tokens are too few for one batch")
        starts = starts[torch.randperm(len(starts), generator=generator)].to(tokens.device)
        for i in range(0, len(starts) - recipe.batch_size + 1, recipe.batch_size):
            chosen = starts[i : i + recipe.batch_size, None]
            yield tokens[chosen + offsets].long()


# --------------------------------------------------------------------------------------- the model


def hub_config(recipe: Recipe, vocab_size: int) -> dict[str, Any]:
    """config.json as Qwen3's own checkpoints spell it."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": vocab_size,
        "hidden_size": recipe.hidden_size,
        "num_hidden_layers": recipe.num_layers,
        "num_attention_heads": recipe.num_heads,
        "num_key_value_heads": recipe.num_kv_heads,
        "head_dim": HEAD_DIM,
        "intermediate_size": recipe.intermediate_size,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "max_position_embeddings": recipe.context,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "tie_word_embeddings": True,
        "initializer_range": 0.02,
        "use_cache": True,
        "use_sliding_window": False,
        "bos_token_id": END_OF_TEXT_ID,
        "eos_token_id": END_OF_TEXT_ID,
        "torch_dtype": "bfloat16",
    }


def build_model(recipe: Recipe, vocab_size: int) -> Qwen3ForCausalLM:
    """A freshly initialised Qwen3 in float32, with dropout on all that enters the residual stream.

    Qwen3 itself has dropout only inside attention; hooks add it where GPT-2 has it: on the
    embeddings and on what each attention and each MLP adds. They act in training mode only.
    """
    # As a float32 config, whatever config.json will say: these are the optimizer's master weights.
    config = Qwen3Config(**hub_config(recipe, vocab_size) | {"torch_dtype": "float32"})
    model = Qwen3ForCausalLM(config)

    def drop(module: nn.Module, _inputs: tuple[Tensor], output: Tensor) -> Tensor:
        return functional.dropout(output, recipe.dropout, module.training)

    if recipe.dropout > 0:
        for name, module in model.named_modules():
            if name.endswith(("embed_tokens", "o_proj", "down_proj")):
                module.register_forward_hook(drop)
    return model


def next_token_loss(model: Qwen3ForCausalLM, windows: Tensor) -> Tensor:
    """Mean cross-entropy in nats of each token given those before it; windows [batch, tokens]."""
    # A ready mask mapping keeps transformers from building a mask: attention is then causal by
    # flag, which is what the fast kernels need.
    hidden = model.model(
        input_ids=windows[:, :-1], attention_mask={"full_attention": None}, use_cache=False
    ).last_hidden_state
    logits = model.lm_head(hidden)
    return functional.cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten())


def make_optimizers(model: Qwen3ForCausalLM, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the embedding and the norms.

    `match_rms_adamw` scales Muon's updates to the size of Adam's, so one learning rate serves both.
    """
    named = list(model.named_parameters())
    hidden = [p for name, p in named if p.ndim == 2 and "layers" in name]
    embedding = [p for name, p in named if p.ndim == 2 and "layers" not in name]
    norms = [p for _, p in named if p.ndim < 2]
    muon = torch.optim.Muon(
        hidden,
        lr=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
    adamw = torch.optim.AdamW(
        [
            {"params": embedding, "weight_decay": recipe.weight_decay},
            {"params": norms, "weight_decay": 0.0},
        ],
        lr=recipe.learning_rate,
        betas=(0.9, 0.95),
    )
    return [muon, adamw]


@torch.no_grad()
def evaluate(
    model: Qwen3ForCausalLM, tokens: Tensor, context: int, max_windows: int = 256
) -> float:
    """Mean loss in nats per token over at most `max_windows` windows spread over the stream."""
    windows = tokens.unfold(0, context + 1, context)
    windows = windows[:: math.ceil(len(windows) / max_windows)]
    model.eval()
    parts = torch.split(windows, 8)
    sums = [next_token_loss(model, part.long()) * len(part) for part in parts]
    model.train()
    return float(torch.stack(sums).sum()) / len(windows)


def save_model(model: Qwen3ForCausalLM, recipe: Recipe, tokenizer: Tokenizer, folder: Path) -> None:
    """Writes the model folder in the hub's format, weights in bfloat16."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {  # a tied output matrix is no parameter of its own, so it appears once
        name: parameter.detach().to("cpu", torch.bfloat16).contiguous()
        for name, parameter in model.named_parameters()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    generation = {
        "bos_token_id": END_OF_TEXT_ID,
        "eos_token_id": END_OF_TEXT_ID,
        "pad_token_id": END_OF_TEXT_ID,
        "do_sample": True,
        "temperature": 0.9,  # lower, and it repeats itself more than the novels do
        "top_p": 0.9,
    }
    write_json(folder / "config.json", hub_config(recipe, tokenizer.get_vocab_size()))
    write_json(folder / "generation_config.json", generation)
    save_tokenizer(tokenizer, folder, recipe.context)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """One indented JSON file."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


# ------------------------------------------------------------------------------------ the training


def learning_rate_factor(step: int, progress: float) -> float:
    """Warm-up by steps, then straight down to zero as `progress` goes from 0 to 1."""
    return min(1.0, (step + 1) / WARMUP_STEPS) * (1.0 - progress)


def step_optimizers(optimizers: list[torch.optim.Optimizer], learning_rate: float) -> None:
    """One update with this learning rate; clears the gradients."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.step()
        optimizer.zero_grad()


def train(
    recipe: Recipe, data: Path, out: Path, minutes: float, max_steps: float = math.inf
) -> dict[str, Any]:
    """Trains for `minutes` or `max_steps`, whichever ends first; `out` gets the best weights.

    Returns what it also writes to training_log.json. The losses named there at top level are
    measured on the bfloat16 weights as saved, without dropout.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(recipe.seed)
    tokenizer = Tokenizer.from_file(str(data / "tokenizer.json"))
    train_tokens, held_out_tokens = (
        torch.from_numpy(np.load(data / f"{split}.npy").astype(np.int32)).to(device)
        for split in ("train", "held_out")
    )
    model = build_model(recipe, tokenizer.get_vocab_size()).to(device)
    loss_of = torch.compile(next_token_loss) if device.type == "cuda" else next_token_loss
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
    optimizers = make_optimizers(model, recipe)
    tokens_per_step = recipe.batch_size * recipe.context

    history: list[dict[str, float]] = []
    losses: list[Tensor] = []  # of the steps since the last evaluation
    next_evaluation = 1 / EVALUATIONS
    began = time.monotonic()
    for step, windows in enumerate(
        batches(train_tokens, recipe, torch.Generator().manual_seed(recipe.seed))
    ):
        elapsed = (time.monotonic() - began) / 60
        progress = min(1.0, max(elapsed / minutes, step / max_steps))
        if progress >= next_evaluation:
            with autocast:
                held_out_loss = evaluate(model, held_out_tokens, recipe.context)
            if held_out_loss < min((past["held_out_loss"] for past in history), default=math.inf):
                save_model(model, recipe, tokenizer, out)
            history.append(
                {
                    "step": step,
                    "minutes": round(elapsed, 2),
                    "epochs": round(step * tokens_per_step / len(train_tokens), 2),
                    "loss_in_training": round(float(torch.stack(losses).mean()), 4),
                    "held_out_loss": round(held_out_loss, 4),
                }
            )
            print(json.dumps(history[-1]), flush=True)
            losses = []
            next_evaluation = min(1.0, progress + 1 / EVALUATIONS)
        if progress == 1.0:
            break
        with autocast:
            loss = loss_of(model, windows)
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(loss.detach())
        step_optimizers(optimizers, recipe.learning_rate * learning_rate_factor(step, progress))

    saved = AutoModelForCausalLM.from_pretrained(out, dtype=torch.bfloat16).to(device)
    log = {
        "recipe": dataclasses.asdict(recipe),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "parameters": sum(parameter.numel() for parameter in saved.parameters()),
        "vocab_size": tokenizer.get_vocab_size(),
        "corpus": json.loads((data / "sizes.json").read_text(encoding="utf-8")),
        "train_loss": evaluate(saved, train_tokens, recipe.context),
        "held_out_loss": evaluate(saved, held_out_tokens, recipe.context),
        "history": history,
    }
    write_json(out / "training_log.json", log)
    return log


# ------------------------------------------------------------------------------------ command line


@click.group(help=__doc__)
def main() -> None:
    """The commands below."""


@main.command()
@click.argument("novels", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("data", type=click.Path(path_type=Path))
def prepare(novels: Path, data: Path) -> None:
    """Turns the text files in NOVELS into a tokenizer and token streams in DATA."""
    prepare_data(novels, data)


@main.command("train")
@click.argument("data", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--model", type=click.Choice(list(RECIPES)), default="demo", show_default=True)
@click.option("--minutes", type=float, default=12.0, show_default=True)
@click.option("--set", "changes", multiple=True, metavar="NAME=VALUE", help="Change the recipe.")
def train_command(
    data: Path, out: Path, model: str, minutes: float, changes: tuple[str, ...]
) -> None:
    """Trains a model on DATA and writes it to OUT in the hub's format."""
    recipe = RECIPES[model]
    for change in changes:
        name, _, value = change.partition("=")
        kind = type(getattr(recipe, name))
        recipe = dataclasses.replace(recipe, **{name: kind(value)})
    train(recipe, data, out, minutes)


if __name__ == "__main__":
    main()

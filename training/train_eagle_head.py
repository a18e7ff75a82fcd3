"""Trains an EAGLE-3 head for the built-in demo model, on the text that it was trained on.

python -m training.train_demo_model prepare NOVELS DATA    # text -> token streams
python -m training.train_eagle_head DATA OUT

The head learns the model's own distribution at every place of the novels, of its most frequent
tokens. It is unrolled as it will be used: first it reads the model's hidden states, then in each
further round its own of the round before, as it does when it guesses several tokens (the paper's
"training-time test"). It starts from the model itself: its states after the highest layer that is
read, and its output matrix.
"""

import dataclasses
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM

from minimal_vllm.demo import DEMO_MODEL_DIR
from training.train_demo_model import HEAD_DIM, write_json

ROUNDS = 3
EVALUATIONS = 6
HELD_OUT_WINDOWS = 64


@dataclass(frozen=True)
class Recipe:
    """The shape of a head and how it is trained; the defaults are those of the demo's head."""

    read_layers: tuple[int, int, int] = (1, 3, 5)  # numbers of layers, counted from 1
    draft_vocab_size: int = 1536
    num_heads: int = 3
    num_kv_heads: int = 1
    intermediate_size: int = 256
    window: int = 256  # tokens per training window
    batch_size: int = 64  # windows per step
    learning_rate: float = 3e-3
    seed: int = 0


# ---------------------------------------------------------------------------------------- the data


def windows_of(tokens: Tensor, recipe: Recipe, generator: torch.Generator) -> Iterator[Tensor]:
    """Yields windows [batch_size, window + 1] from random places for ever."""
    offsets = torch.arange(recipe.window + 1)
    while True:
        starts = torch.randint(
            len(tokens) - recipe.window, (recipe.batch_size, 1), generator=generator
        )
        yield tokens[(starts + offsets).to(tokens.device)].long()


# ---------------------------------------------------------------------------------------- the head


class RMSNorm(nn.Module):
    """Root mean square normalization."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalizes the last dimension."""
        return functional.rms_norm(x, self.weight.shape, self.weight, self.eps)


def linear(in_size: int, out_size: int) -> nn.Linear:
    """A projection without bias."""
    return nn.Linear(in_size, out_size, bias=False)


class Attention(nn.Module):
    """Attention over the rounds of the unrolled head."""

    def __init__(self, hidden: int, recipe: Recipe, theta: float) -> None:
        super().__init__()
        self.q_proj = linear(2 * hidden, recipe.num_heads * HEAD_DIM)
        self.k_proj = linear(2 * hidden, recipe.num_kv_heads * HEAD_DIM)
        self.v_proj = linear(2 * hidden, recipe.num_kv_heads * HEAD_DIM)
        self.o_proj = linear(recipe.num_heads * HEAD_DIM, hidden)
        self.theta = theta

    def forward(self, x: Tensor, earlier: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Attends over this round's keys and those of the earlier ones, and appends this round's.

        In round `s`, place `i` sees the keys of round 0 up to place `i - s`, and of each later
        round `r` the one at place `i - (s - r)`: those that there are when the head guesses the
        `s`-th token behind place `i - s`.
        """
        q, k, v = (
            proj(x).unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = self.rotate(q), self.rotate(k)
        earlier.append((k, v))
        length, now = x.shape[1], len(earlier) - 1
        place = torch.arange(length, device=x.device)
        back = place[:, None] - place
        seen = torch.cat([back >= now, *(back == now - r for r in range(1, now + 1))], dim=1)
        seen[:now, :length] |= back[:now] == 0  # nothing is before: any key, but never none
        out = functional.scaled_dot_product_attention(
            q,
            torch.cat([keys for keys, _ in earlier], dim=2),
            torch.cat([values for _, values in earlier], dim=2),
            attn_mask=seen,
            enable_gqa=True,
        )
        attended: Tensor = self.o_proj(out.transpose(1, 2).flatten(2))
        return attended

    def rotate(self, heads: Tensor) -> Tensor:
        """Rotates heads [batch, heads, tokens, dim] by their places."""
        dim = heads.shape[-1]
        exponents = torch.arange(0, dim, 2, device=heads.device) / dim
        place = torch.arange(heads.shape[2], device=heads.device)
        angles = place[:, None] * self.theta**-exponents
        cos, sin = torch.cat((angles.cos(),) * 2, -1), torch.cat((angles.sin(),) * 2, -1)
        first, second = heads.chunk(2, dim=-1)
        return heads * cos + torch.cat((-second, first), -1) * sin


class GatedMLP(nn.Module):
    """Gated feed-forward network."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = linear(hidden, inner)
        self.up_proj = linear(hidden, inner)
        self.down_proj = linear(inner, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Computes the network."""
        inner = functional.silu(self.gate_proj(x)) * self.up_proj(x)
        result: Tensor = self.down_proj(inner)
        return result


class Midlayer(nn.Module):
    """The one layer of a head; its names are those of the published format."""

    def __init__(self, hidden: int, recipe: Recipe, config: dict[str, Any]) -> None:
        super().__init__()
        eps = config["rms_norm_eps"]
        self.input_layernorm = RMSNorm(hidden, eps)
        self.hidden_norm = RMSNorm(hidden, eps)
        self.post_attention_layernorm = RMSNorm(hidden, eps)
        self.self_attn = Attention(hidden, recipe, config["rope_theta"])
        self.mlp = GatedMLP(hidden, recipe.intermediate_size)

    def forward(
        self, embedded: Tensor, states: Tensor, earlier: list[tuple[Tensor, Tensor]]
    ) -> Tensor:
        """Computes the layer for `states`, each with the embedding of the token that follows."""
        both = torch.cat((self.input_layernorm(embedded), self.hidden_norm(states)), dim=-1)
        states = states + self.self_attn(both, earlier)
        result: Tensor = states + self.mlp(self.post_attention_layernorm(states))
        return result


class Head(nn.Module):
    """An EAGLE-3 head in training.

    Args:
        recipe: its shape.
        config: config.json of the model.
        model: the model.
        token_ids: tokens that the head can guess, ascending.
    """

    def __init__(
        self, recipe: Recipe, config: dict[str, Any], model: Any, token_ids: Tensor
    ) -> None:
        super().__init__()
        hidden = config["hidden_size"]
        self.fc = linear(3 * hidden, hidden)
        self.midlayer = Midlayer(hidden, recipe, config)
        self.norm = RMSNorm(hidden, config["rms_norm_eps"])
        self.lm_head = linear(hidden, recipe.draft_vocab_size)
        with torch.no_grad():  # begin as the model itself, without its last layers
            self.fc.weight.mul_(0.1)[:, -hidden:] += torch.eye(hidden)
            self.midlayer.self_attn.o_proj.weight.mul_(0.1)
            self.midlayer.mlp.down_proj.weight.mul_(0.1)
            self.norm.weight.copy_(model.model.norm.weight)
            self.lm_head.weight.copy_(model.lm_head.weight[token_ids])

    def forward(self, embedded: Tensor, states: Tensor) -> Iterator[Tensor]:
        """Yields the logits of each round, [batch, tokens, draft vocabulary].

        Args:
            embedded: [batch, tokens, hidden]: embeddings of the tokens that follow each place.
            states: [batch, tokens, 3 hidden]: the model's states at each place.
        """
        earlier: list[tuple[Tensor, Tensor]] = []
        own = self.fc(states)
        for _ in range(ROUNDS):
            result = self.midlayer(embedded, own, earlier)
            yield self.lm_head(self.norm(result))
            own = torch.cat((own[:, :1], result[:, :-1]), dim=1)


@torch.no_grad()
def read_states(model: Any, windows: Tensor, recipe: Recipe) -> tuple[Tensor, Tensor, Tensor]:
    """What the head reads of windows [batch, tokens + 1], and what it should guess.

    Returns:
        The embeddings of the tokens behind each place, the states at each place, and the model's
        logits of the token after next.
    """
    result = model(windows, output_hidden_states=True, use_cache=False)
    states = torch.cat([result.hidden_states[layer] for layer in recipe.read_layers], dim=-1)
    embedded = model.get_input_embeddings()(windows[:, 1:])
    return embedded, states[:, :-1], result.logits[:, 1:]


def loss_of(head: Head, model: Any, windows: Tensor, recipe: Recipe, token_ids: Tensor) -> Tensor:
    """Mean cross-entropy with the model's own distribution, weighted toward the first rounds."""
    embedded, states, logits = read_states(model, windows, recipe)
    wanted = logits[..., token_ids].softmax(-1)
    losses = [
        0.8**each * -(wanted * guessed.log_softmax(-1)).sum(-1)[:, each:].mean()
        for each, guessed in enumerate(head(embedded, states))
    ]
    return torch.stack(losses).sum()


@torch.no_grad()
def evaluate(
    head: Head, model: Any, windows: Tensor, recipe: Recipe, token_ids: Tensor
) -> list[float]:
    """The share of places, by round, where the likeliest guess is the model's likeliest token."""
    right = torch.zeros(ROUNDS)
    for part in torch.split(windows, 8):
        embedded, states, logits = read_states(model, part, recipe)
        best = logits.argmax(-1)
        for each, guessed in enumerate(head(embedded, states)):
            hits = token_ids[guessed.argmax(-1)] == best
            right[each] += hits[:, each:].float().mean().item() * len(part)
    return [round(share / len(windows), 4) for share in right.tolist()]


# ------------------------------------------------------------------------------------ the training


def train(
    recipe: Recipe,
    data: Path,
    out: Path,
    minutes: float,
    model_dir: Path = DEMO_MODEL_DIR,
    max_steps: float = math.inf,
) -> dict[str, Any]:
    """Trains for `minutes` or `max_steps`, whichever ends first, and writes the head to `out`."""
    torch.manual_seed(recipe.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
    train_tokens, held_out = (
        torch.from_numpy(np.load(data / f"{split}.npy").astype(np.int32)).to(device)
        for split in ("train", "held_out")
    )
    held_out = held_out.unfold(0, recipe.window + 1, recipe.window)
    held_out = held_out[:: math.ceil(len(held_out) / HELD_OUT_WINDOWS)].long()

    counts = torch.bincount(train_tokens, minlength=config["vocab_size"]).cpu()
    token_ids = counts.topk(recipe.draft_vocab_size).indices.sort().values
    covered = float(counts[token_ids].sum() / counts.sum())

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).to(device)
    head = Head(recipe, config, model, token_ids).to(device)
    token_ids = token_ids.to(device)
    optimizer = torch.optim.AdamW(head.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.95))
    history: list[dict[str, Any]] = []
    began, step, progress = time.monotonic(), 0, 0.0
    windows = windows_of(train_tokens, recipe, torch.Generator().manual_seed(recipe.seed))
    while True:
        if progress >= len(history) / EVALUATIONS:
            shares = evaluate(head, model, held_out, recipe, token_ids)
            history.append({"step": step, "progress": round(progress, 2), "right": shares})
            print(json.dumps(history[-1]), flush=True)
        if progress == 1.0:
            break
        loss = loss_of(head, model, next(windows), recipe, token_ids)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * min(1.0, (step + 1) / 50) * (1 - progress)
        optimizer.step()
        step += 1
        progress = min(1.0, max((time.monotonic() - began) / 60 / minutes, step / max_steps))
    save(head, recipe, config, token_ids.cpu(), out)
    log = {
        "recipe": dataclasses.asdict(recipe),
        "device": str(device),
        "parameters": sum(parameter.numel() for parameter in head.parameters()),
        "tokens": step * recipe.batch_size * recipe.window,
        "covered_by_draft_vocabulary": covered,
        "history": history,
    }
    write_json(out / "training_log.json", log)
    return log


def save(head: Head, recipe: Recipe, config: dict[str, Any], token_ids: Tensor, out: Path) -> None:
    """Writes the head in the published format, weights in bfloat16."""
    out.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: weight.detach().cpu().to(torch.bfloat16).contiguous()
        for name, weight in head.named_parameters()
    }
    tensors["d2t"] = token_ids - torch.arange(len(token_ids))
    tensors["t2d"] = torch.zeros(config["vocab_size"], dtype=torch.bool)
    tensors["t2d"][token_ids] = True
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    kept = ("vocab_size", "hidden_size", "hidden_act", "rms_norm_eps", "rope_theta")
    shape = {
        "architectures": ["LlamaForCausalLMEagle3"],
        "model_type": "llama",
        **{key: config[key] for key in kept},
        "draft_vocab_size": recipe.draft_vocab_size,
        "num_hidden_layers": 1,
        "num_attention_heads": recipe.num_heads,
        "num_key_value_heads": recipe.num_kv_heads,
        "head_dim": HEAD_DIM,
        "intermediate_size": recipe.intermediate_size,
        "max_position_embeddings": config["max_position_embeddings"],
        "tie_word_embeddings": False,
        "eagle_aux_hidden_state_layer_ids": list(recipe.read_layers),
        "torch_dtype": "bfloat16",
    }
    write_json(out / "config.json", shape)


@click.command(help=__doc__)
@click.argument("data", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--minutes", type=float, default=1.0, show_default=True)
@click.option("--batch-size", type=int, default=Recipe.batch_size, show_default=True)
def main(data: Path, out: Path, minutes: float, batch_size: int) -> None:
    """The command line."""
    train(Recipe(batch_size=batch_size), data, out, minutes)


if __name__ == "__main__":
    main()

"""A transformer that continues a sentence, whole: weights from a file, and PyTorch.

It reads all of its text again for each new token. The engine is what makes that fast.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from minimal_vllm.demo import DEMO_MODEL_DIR

PROMPT = "The old captain looked at the sea, and"


class Transformer:
    """A language model in the shape of Qwen3.

    Args:
        folder: holds ``config.json`` and ``model.safetensors``.
    """

    def __init__(self, folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.num_layers: int = config["num_hidden_layers"]
        self.head_dim: int = config["head_dim"]
        self.theta: float = config["rope_theta"]
        self.epsilon: float = config["rms_norm_eps"]
        self.weights = {
            name.removeprefix("model."): tensor.float()
            for name, tensor in load_file(folder / "model.safetensors").items()
        }

    def logits(self, token_ids: list[int]) -> Tensor:
        """Return a number for each token of the vocabulary: the higher, the likelier it is next."""
        embedding = self.weights["embed_tokens.weight"]
        x = embedding[token_ids]  # [T, hidden]: one row per token
        for layer in range(self.num_layers):
            x = x + self.attention(self.norm(x, f"layers.{layer}.input_layernorm"), layer)
            x = x + self.mlp(self.norm(x, f"layers.{layer}.post_attention_layernorm"), layer)
        logits: Tensor = self.norm(x[-1], "norm") @ embedding.T
        return logits

    def attention(self, x: Tensor, layer: int) -> Tensor:
        """Let each token look at itself and at all tokens before it."""
        name = f"layers.{layer}.self_attn"
        q = self.rotate(self.norm(self.heads(x, f"{name}.q_proj"), f"{name}.q_norm"))
        k = self.rotate(self.norm(self.heads(x, f"{name}.k_proj"), f"{name}.k_norm"))
        v = self.heads(x, f"{name}.v_proj")
        group = len(q) // len(k)  # query heads that share a key and a value
        k, v = k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)
        scores = q @ k.transpose(1, 2) / self.head_dim**0.5  # [heads, T, T]
        later = torch.ones(len(x), len(x)).triu(1).bool()
        weights = scores.masked_fill(later, -torch.inf).softmax(-1)
        seen: Tensor = (weights @ v).transpose(0, 1).flatten(1)  # [T, heads * head_dim]
        out: Tensor = seen @ self.weights[f"{name}.o_proj.weight"].T
        return out

    def mlp(self, x: Tensor, layer: int) -> Tensor:
        """Think about each token by itself."""
        gate, up, down = (
            self.weights[f"layers.{layer}.mlp.{name}_proj.weight"]
            for name in ("gate", "up", "down")
        )
        return (torch.nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T

    def norm(self, x: Tensor, name: str) -> Tensor:
        """Scale each vector to the same length, and then each of its numbers."""
        size = x.square().mean(-1, keepdim=True)
        return x * torch.rsqrt(size + self.epsilon) * self.weights[f"{name}.weight"]

    def heads(self, x: Tensor, name: str) -> Tensor:
        """Multiply by a matrix, and split the result into heads: ``[heads, T, head_dim]``."""
        product = x @ self.weights[f"{name}.weight"].T
        return product.view(len(x), -1, self.head_dim).transpose(0, 1)

    def rotate(self, x: Tensor) -> Tensor:
        """Turn pairs of numbers by an angle that grows with the token's position."""
        half = self.head_dim // 2
        angle = torch.arange(x.shape[1])[:, None] * self.theta ** (-torch.arange(half) / half)
        first, second = x[..., :half], x[..., half:]
        turned = (
            first * angle.cos() - second * angle.sin(),
            second * angle.cos() + first * angle.sin(),
        )
        return torch.cat(turned, dim=-1)


def generate(model: Transformer, token_ids: list[int], count: int) -> list[int]:
    """Continue a text by the most probable token, again and again."""
    for _ in range(count):
        token_ids = [*token_ids, int(model.logits(token_ids).argmax())]
    return token_ids


def main() -> None:
    tokenizer = Tokenizer.from_file(str(DEMO_MODEL_DIR / "tokenizer.json"))
    token_ids = tokenizer.encode(PROMPT).ids
    print([tokenizer.decode([token]) for token in token_ids])
    print(tokenizer.decode(generate(Transformer(DEMO_MODEL_DIR), token_ids, 16)))


if __name__ == "__main__":
    main()

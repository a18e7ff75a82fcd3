"""Random EAGLE-3 heads in the published format, and a plain one to compare with."""

import importlib.util
import json

import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import scaled_dot_product_attention, silu

from minimal_vllm.speculation.eagle_model import EagleModel

READ_LAYERS = [1, 2, 2]
"""Numbers of layers after which the heads here read the hidden state."""


def read_config(folder):
    return json.loads((folder / "config.json").read_text())


def write_head(folder, *, target=None, embedding=False, is_pickled=False, **changes):
    """Write a head of random weights for a model, given by its config.json."""
    config = {
        "architectures": ["LlamaForCausalLMEagle3"],
        "model_type": "llama",
        "vocab_size": target["vocab_size"],
        "draft_vocab_size": 2 * target["vocab_size"] // 3,
        "hidden_size": target["hidden_size"],
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "num_hidden_layers": 1,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 256,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "eagle_aux_hidden_state_layer_ids": READ_LAYERS,
        **changes,
    }
    config = {key: value for key, value in config.items() if value is not None}
    hidden, inner, vocab = (
        config[each] for each in ("hidden_size", "intermediate_size", "vocab_size")
    )
    heads, kv_heads, dim = (
        config[each] for each in ("num_attention_heads", "num_key_value_heads", "head_dim")
    )
    own = config.get("draft_vocab_size", vocab)
    read = config.get("target_hidden_size", hidden)
    shapes = {
        "fc": (hidden, 3 * read),
        "midlayer.self_attn.q_proj": (heads * dim, 2 * hidden),
        "midlayer.self_attn.k_proj": (kv_heads * dim, 2 * hidden),
        "midlayer.self_attn.v_proj": (kv_heads * dim, 2 * hidden),
        "midlayer.self_attn.o_proj": (hidden, heads * dim),
        "midlayer.mlp.gate_proj": (inner, hidden),
        "midlayer.mlp.up_proj": (inner, hidden),
        "midlayer.mlp.down_proj": (hidden, inner),
        "midlayer.hidden_norm": (hidden,),
        "midlayer.input_layernorm": (hidden,),
        "midlayer.post_attention_layernorm": (hidden,),
        "norm": (hidden,),
        "lm_head": (own, hidden),
        **({"embed_tokens": (vocab, hidden)} if embedding else {}),
    }
    generator = torch.Generator().manual_seed(1)
    tensors = {
        f"{name}.weight": torch.randn(shape, generator=generator) / shape[-1] ** 0.5
        if len(shape) > 1
        else 0.5 + torch.rand(shape, generator=generator)
        for name, shape in shapes.items()
    }
    known = torch.randperm(vocab, generator=generator)[:own].sort().values
    tensors["d2t"] = known - torch.arange(own)
    tensors["t2d"] = torch.zeros(vocab, dtype=torch.bool).index_fill(0, known, True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if is_pickled:
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


class PlainHead:
    """A head that computes whole sequences, written after the paper's code.

    Args:
        folder: its checkpoint.
        embedding: the model's embedding.
    """

    def __init__(self, folder, embedding):
        self.config = json.loads((folder / "config.json").read_text())
        if (folder / "model.safetensors").exists():
            self.weights = load_file(folder / "model.safetensors")
        else:
            self.weights = torch.load(folder / "pytorch_model.bin")
        self.embedding = self.weights.get("embed_tokens.weight", embedding)

    def weight(self, name):
        return self.weights[f"{name}.weight"].float()

    def norm(self, x, name):
        scale = (x.pow(2).mean(-1, keepdim=True) + self.config["rms_norm_eps"]).rsqrt()
        return x * scale * self.weight(name)

    def rotate(self, x):
        """``[T, heads, D]`` at positions from 0 on."""
        dim = x.shape[-1]
        theta = self.config.get("rope_theta", 10_000.0)
        frequencies = theta ** -(torch.arange(0, dim, 2).float() / dim)
        angles = torch.arange(len(x)).float()[:, None] * frequencies
        cos, sin = (torch.cat((f(angles),) * 2, -1)[:, None] for f in (torch.cos, torch.sin))
        a, b = x.chunk(2, -1)
        return x * cos + torch.cat((-b, a), -1) * sin

    def fuse(self, states):
        """The three hidden states of each token, ``[T, 3, hidden]``, as one."""
        return states.flatten(1) @ self.weight("fc").T

    def run(self, tokens, states):
        """The head's states; the token in each row follows the one that the state is of."""
        embedded = self.norm(self.embedding[tokens].float(), "midlayer.input_layernorm")
        normed = self.norm(states, "midlayer.hidden_norm")
        both = torch.cat((embedded, normed), -1)
        dim = self.config["head_dim"]
        q, k, v = (
            (both @ self.weight(f"midlayer.self_attn.{each}_proj").T).unflatten(-1, (-1, dim))
            for each in "qkv"
        )
        q, k = self.rotate(q), self.rotate(k)
        out = scaled_dot_product_attention(
            *(each.transpose(0, 1)[None] for each in (q, k, v)), is_causal=True, enable_gqa=True
        )
        out = out[0].transpose(0, 1).flatten(1)
        residual = normed if self.config.get("norm_before_residual") else states
        residual = residual + out @ self.weight("midlayer.self_attn.o_proj").T
        x = self.norm(residual, "midlayer.post_attention_layernorm")
        gate, up = (x @ self.weight(f"midlayer.mlp.{each}_proj").T for each in ("gate", "up"))
        return residual + (silu(gate) * up) @ self.weight("midlayer.mlp.down_proj").T

    def guess(self, tokens, hidden, count):
        """Guess greedily what follows some tokens, given the hidden states of all but the last."""
        tokens, states, guesses = list(tokens), self.fuse(hidden), []
        for _ in range(count):
            own = self.run(torch.tensor(tokens[1:]), states)[-1:]
            logits = self.norm(own, "norm") @ self.weight("lm_head").T
            best = int(logits.argmax())
            guesses.append(best + int(self.weights["d2t"][best]))
            tokens.append(guesses[-1])
            states = torch.cat((states, own))
        return guesses


def wrong_guesses(folder, head, listened):
    """Compare guesses with those of a plain head.

    Args:
        folder: checkpoint of the model.
        head: checkpoint of the head.
        listened: pairs of known tokens and guesses.
    """
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    plain = PlainHead(head, model.get_input_embeddings().weight.detach())
    wrong = []
    for known, guesses in listened:
        with torch.no_grad():
            states = model(torch.tensor([known[:-1]]), output_hidden_states=True).hidden_states
        hidden = torch.stack([states[layer][0] for layer in READ_LAYERS], dim=1)
        if plain.guess(known, hidden, len(guesses)) != guesses:
            wrong.append((known, guesses))
    return wrong


class Listener:
    """Notes what is guessed, and after which tokens, on a CPU and on a GPU."""

    def __init__(self, monkeypatch):
        self._heard = []
        self._on_gpu = {}
        propose = EagleModel.propose

        def listen(model, plan):
            known = [list(entry.request.token_ids) for entry in plan.scheduled]
            guesses = propose(model, plan)
            self._heard += [pair for pair in zip(known, guesses, strict=True) if pair[1]]
            return guesses

        monkeypatch.setattr(EagleModel, "propose", listen)
        if importlib.util.find_spec("triton"):
            self._listen_on_gpu(monkeypatch)

    def _listen_on_gpu(self, monkeypatch):
        from minimal_vllm.speculation.cuda_draft import CudaDraftModel

        guess = CudaDraftModel.guess

        def listen(model, plan):
            for entry in plan.scheduled:
                if entry.guesses:
                    self._on_gpu.setdefault(entry.request, []).append(entry)
            return guess(model, plan)

        monkeypatch.setattr(CudaDraftModel, "guess", listen)

    @property
    def followed(self):
        """Whether any guesses followed guesses that were in flight."""
        return any(each.follows_guesses for entries in self._on_gpu.values() for each in entries)

    @property
    def guesses(self):
        """Known tokens and the guesses behind them, once all requests have ended.

        On a GPU, where a request stands is known later, and not in its last steps.
        """
        entries = [each for entries in self._on_gpu.values() for each in entries[:-2]]
        later = [(list(each.request.token_ids[: each.start + 1]), each.guesses) for each in entries]
        return self._heard + [(known, list(guesses)) for known, guesses in later]

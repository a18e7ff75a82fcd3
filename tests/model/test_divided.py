"""A model that several ranks compute. Here they are threads; see tests/engine/test_ranks.py."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from checkpoints import FAMILIES, write_checkpoint, write_json
from dense_attention import TOKEN_IDS, compute_logits, dense_cache  # noqa: F401
from gguf_files import write_gguf
from thread_ranks import Meeting, ThreadRanks, in_ranks

from minimal_vllm.model import safetensors_file
from minimal_vllm.model.config import ModelConfig
from minimal_vllm.model.decoder import Decoder
from minimal_vllm.model.divided_config import divide
from minimal_vllm.model.divided_modules import divided
from minimal_vllm.model.divided_weights import Share
from minimal_vllm.model.layers import PLAIN_MODULES
from minimal_vllm.model.linear import RowLinear
from minimal_vllm.model.loader import load_model
from minimal_vllm.model.norm import RMSNorm
from minimal_vllm.model.packed_linear import PACKED_MODULES
from minimal_vllm.model.ranks import Alone, side_by_side

CPU = torch.device("cpu")


def load_part(path, ranks, modules=PLAIN_MODULES, dtype=torch.float32) -> Decoder:
    whole = ModelConfig.from_checkpoint(path)
    modules = divided(modules, ranks, whole.vocab_size)
    share = Share(whole, ranks.index)
    own = divide(whole, ranks.count)
    return load_model(path, own, dtype, CPU, modules=modules, share=share)


def load_whole(path) -> Decoder:
    return load_model(path, ModelConfig.from_checkpoint(path), torch.float32, CPU)


def logits_of_part(path, ranks, modules=PLAIN_MODULES):
    return compute_logits(load_part(path, ranks, modules), [13, 1, 26])


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_logits_of_several_ranks_are_those_of_one(checkpoint, family, count):
    path = checkpoint(family)
    expected = compute_logits(load_whole(path), [len(TOKEN_IDS)])
    every = in_ranks(count, partial(logits_of_part, path))
    torch.testing.assert_close(every[0], expected, rtol=1e-4, atol=3e-4)
    assert all(torch.equal(logits, every[0]) for logits in every), "ranks would sample differently"


def test_packed_weights_are_divided_too(checkpoint):
    path = checkpoint("llama-mqa-biases")
    expected = compute_logits(load_whole(path), [len(TOKEN_IDS)])
    for logits in in_ranks(2, partial(logits_of_part, path, modules=PACKED_MODULES)):
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=3e-4)


def test_a_vocabulary_need_not_be_divisible(tmp_path):
    config = FAMILIES["qwen3"] | {"vocab_size": 289, "num_attention_heads": 8}
    path = write_checkpoint(tmp_path, config)
    expected = compute_logits(load_whole(path), [len(TOKEN_IDS)])
    for logits in in_ranks(8, partial(logits_of_part, path)):
        assert logits.shape == expected.shape
        assert logits.is_contiguous(), "kernels get no strides"
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=3e-4)


def test_a_bias_of_a_sum_is_added_by_one_rank(checkpoint):
    parts = in_ranks(2, partial(load_part, checkpoint("llama-mqa-biases")))
    biases = [
        [module.bias for module in part.modules() if isinstance(module, RowLinear)]
        for part in parts
    ]
    assert all(bias.any() for bias in biases[0])
    assert not any(bias.any() for bias in biases[1])


@pytest.mark.parametrize("family", ["llama", "phi3", "olmo2", "qwen3-moe", "gemma2"])
@pytest.mark.parametrize("count", [2, 4])
def test_each_rank_holds_its_share_and_reads_no_more(checkpoint, family, count, monkeypatch):
    path, sizes = checkpoint(family), []
    whole = load_whole(path)
    monkeypatch.setattr(safetensors_file, "safe_open", partial(Spied, sizes))
    part = load_part(path, ThreadRanks(Meeting(count), 1))
    assert sum(sizes) == num_bytes(part)
    assert num_bytes(part) == 4 * part.config.num_parameters
    heads = whole.config.num_kv_heads
    repeated = num_bytes_of_keys(whole) * max(0, count - heads) // heads
    common = num_bytes_in_common(whole)
    assert num_bytes(part) == (num_bytes(whole) - common + repeated) / count + common


class Spied:
    """A file of which is noted how many bytes are taken out."""

    real = staticmethod(safetensors_file.safe_open)

    def __init__(self, sizes, *args, **options):
        self._file, self._sizes = Spied.real(*args, **options), sizes

    def __enter__(self):
        self._opened = self._file.__enter__()
        return self

    def __exit__(self, *error):
        return self._file.__exit__(*error)

    def keys(self):
        return self._opened.keys()

    def get_slice(self, name):
        return SpiedSlice(self._opened.get_slice(name), self._sizes)


class SpiedSlice:
    def __init__(self, whole, sizes):
        self._whole, self._sizes = whole, sizes
        self.get_shape, self.get_dtype = whole.get_shape, whole.get_dtype

    def __getitem__(self, index):
        numbers = self._whole[index]
        self._sizes.append(numbers.numel() * numbers.itemsize)
        return numbers


def num_bytes(model):
    return sum(each.numel() * each.itemsize for each in model.parameters())


def num_bytes_of_keys(model):
    """Of what is repeated where there are fewer key-value heads than ranks."""
    config = model.config
    size = config.num_kv_heads * config.head_dim
    norm = size if config.qk_norm == "all heads" else 0
    biases = 2 * size * config.qkv_bias
    return 4 * config.num_layers * (2 * size * config.hidden_size + biases + norm)


def num_bytes_in_common(model):
    """Of what all ranks have: routers, norms of what all have, and biases of sums."""
    wide = ("q_norm", "k_norm") if model.config.qk_norm == "all heads" else ()
    common = 0
    for name, module in model.named_modules():
        if (isinstance(module, RMSNorm) and not name.endswith(wide)) or name.endswith("router"):
            common += num_bytes(module)
        if isinstance(module, RowLinear) and module.bias is not None:
            common += module.bias.numel() * module.bias.itemsize
    return common


@pytest.mark.parametrize("window_bytes", [8, 100])
def test_a_share_larger_than_the_window_is_copied_in_pieces(checkpoint, window_bytes, monkeypatch):
    expected = load_part(checkpoint("phi3"), ThreadRanks(Meeting(2), 1))
    monkeypatch.setattr(safetensors_file, "WINDOW_BYTES", window_bytes)
    found = load_part(checkpoint("phi3"), ThreadRanks(Meeting(2), 1))
    for one, other in zip(found.parameters(), expected.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("family", ["llama-mqa-biases", "qwen3"])
def test_a_gguf_file_is_divided_too(tmp_path, family):
    write_gguf(tmp_path / "model.gguf", FAMILIES[family])
    path = tmp_path / "model.gguf"
    expected = compute_logits(load_whole(path), [len(TOKEN_IDS)])
    for logits in in_ranks(2, partial(logits_of_part, path)):
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=3e-4)


def test_a_tensor_that_does_not_fit_is_named_by_its_whole_shape(tmp_path):
    path = write_checkpoint(tmp_path, FAMILIES["llama"])
    write_json(path / "config.json", FAMILIES["llama"] | {"intermediate_size": 60})
    with pytest.raises(ValueError, match=r"down_proj.weight is \[32, 64\], must be \[32, 60\]"):
        load_part(path, ThreadRanks(Meeting(2), 0))


@pytest.mark.parametrize(
    ("family", "ranks", "complaint"),
    [
        ("llama", 3, "must be a divisor or a multiple of the model's 2 key-value heads"),
        ("llama", 8, "must be a divisor of the model's 4 attention heads"),
        ("llama-mqa-biases", 3, "must be a divisor of the model's 4 attention heads"),
    ],
)
def test_a_model_that_can_not_be_divided_says_why(family, ranks, complaint):
    with pytest.raises(ValueError, match=f"tensor_parallel_size is {ranks}, but {complaint}"):
        divide(ModelConfig.from_dict(FAMILIES[family]), ranks)


def test_the_sizes_of_mlps_and_experts_must_be_divisible():
    config = ModelConfig.from_dict(FAMILIES["qwen3-moe-some-dense"])
    with pytest.raises(ValueError, match="divisor of the model's 65 MLP channels"):
        divide(replace(config, intermediate_size=65), 2)
    experts = replace(config.experts, inner_size=21)
    with pytest.raises(ValueError, match="divisor of the model's 21 channels per expert"):
        divide(replace(config, experts=experts), 2)


def test_columns_that_the_result_lacks_are_dropped():
    parts = torch.arange(12.0).view(2, 2, 3)
    whole = torch.tensor([[0.0, 1, 2, 6, 7, 8], [3, 4, 5, 9, 10, 11]])
    assert torch.equal(side_by_side(parts), whole)
    out = torch.empty(2, 4)
    assert side_by_side(parts, out) is out
    assert torch.equal(out, whole[:, :4])


def test_one_rank_changes_nothing():
    config = ModelConfig.from_dict(FAMILIES["llama"])
    assert divide(config, 1) is config
    alone, part = Alone(), torch.ones(2, 3)
    assert alone.add(part) is part
    assert alone.concatenate(part) is part
    assert alone.least(3) == 3

"""What requests with a shared prefix read, and how parts of a softmax are merged."""

import torch
from torch import Tensor

from minimal_vllm import LLM, SamplingParams
from minimal_vllm.attention.reference import attend
from minimal_vllm.step.shared_prefix import find_shared_prefixes

PROMPT = "The old captain looked at the sea, and"
NUM_REQUESTS, NUM_SHARED, NUM_STEPS = 32, 512, 5
HEADS, KV_HEADS, DIM = 6, 2, 64  # H, K and D of the built-in model


def main() -> None:
    show_what_is_read()
    show_merging()


def show_what_is_read() -> None:
    """Use one system prompt, then the course's sentence with varying first words."""
    llm = LLM(num_gpu_blocks_override=256)
    system = [300 + index for index in range(NUM_SHARED)]
    sentence = llm.tokenizer.encode(PROMPT)
    greedy = SamplingParams(temperature=0, max_tokens=50, ignore_eos=True)
    for index in range(NUM_REQUESTS):
        llm.engine.add_request(str(index), [*system, 1000 + index, *sentence], greedy)
    for _ in range(NUM_STEPS):
        llm.engine.step()
    requests = llm.engine.scheduler.running
    (prefix,) = find_shared_prefixes(requests, llm.config.block_size)
    lengths = [request.num_computed_tokens for request in requests]
    one_by_one = sum(lengths)
    together = one_by_one - (len(prefix.members) - 1) * prefix.num_tokens
    blocks = [set(request.block_table) for request in requests]
    print(f"1. {len(requests)} requests of {lengths[0]} tokens, {prefix.num_tokens} of them shared")
    print(f"   blocks in the tables    {sum(map(len, blocks)):6}")
    print(f"   different ones          {len(set.union(*blocks)):6}")
    print(f"   tokens read by a step   {one_by_one:6}   if each request reads its own table")
    print(f"                           {together:6}   if what is shared is read once")
    print(f"   that is                 {one_by_one / together:6.1f}   times less\n")
    r, s, u = NUM_REQUESTS, NUM_SHARED, lengths[0] - NUM_SHARED
    assert (one_by_one, together) == (r * (s + u), s + r * u)


def show_merging() -> None:
    torch.manual_seed(0)
    q = torch.randn(1, HEADS, DIM)
    keys, values = torch.randn(2, NUM_SHARED + 15, KV_HEADS, DIM)
    whole = attend(q, keys, values, DIM**-0.5, None)
    parts = [
        attend_to_part(q, keys[part], values[part])
        for part in (slice(0, NUM_SHARED), slice(NUM_SHARED, None))
    ]
    difference = (merge(parts) - whole).abs().max().item()
    print("2. Attention over all keys, and over two parts that are then merged")
    print(f"   the greatest of the {whole.numel()} numbers {whole.abs().max():.2f}")
    print(f"   the greatest difference {difference:.7f}: {'equal' if difference < 1e-6 else 'NO'}")


def attend_to_part(q: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Attend to some keys; return ``[1, H, D]`` and the logarithm of the sum ``[H]``."""
    group = HEADS // KV_HEADS
    scores = torch.einsum("nhd,mhd->hm", q, keys.repeat_interleave(group, 1)) * DIM**-0.5
    return attend(q, keys, values, DIM**-0.5, None), scores.logsumexp(dim=-1)


def merge(parts: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the mean of the parts' results, weighted by the sums of their exponentials."""
    lse = torch.stack([each for _, each in parts])  # [parts, H]
    weights = (lse - lse.logsumexp(dim=0)).exp()
    outs = torch.cat([out for out, _ in parts])  # [parts, H, D]
    return (outs * weights[:, :, None]).sum(dim=0, keepdim=True)


if __name__ == "__main__":
    main()

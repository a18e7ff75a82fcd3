"""How many experts a step reads, and what it takes to compute them."""

from random import Random

import torch

from minimal_vllm.model.experts import choose_experts, mix_experts
from minimal_vllm_lab.sim.presets import read_model_shape

COPY_RATE = 4.3e12
"""Bytes per second that an H200 copies."""


def main() -> None:
    show_what_a_step_reads()
    show_products()


def show_what_a_step_reads() -> None:
    """Draw experts for steps of some sizes, and count the weights that the step reads."""
    model = read_model_shape("qwen3-30b-a3b", None, None)
    experts, random = model.experts, Random(0)
    assert experts is not None
    total, active = model.num_parameters / 1e9, model.expected_parameters(1) / 1e9
    print(f"1. Qwen3-30B-A3B: {total:.1f} billion parameters, {active:.1f} of them active")
    print("   tokens   experts read   expected   GB read   ms on an H200   µs per token")
    for tokens in (1, 2, 4, 8, 16, 32, 64, 256):
        drawn = [random.sample(range(experts.count), experts.per_token) for _ in range(tokens)]
        hit = len({expert for chosen in drawn for expert in chosen})
        size = 2 * model.expected_parameters(tokens)
        seconds = size / COPY_RATE
        print(
            f"   {tokens:6}   {hit:5} of {experts.count}   {experts.expected_hit(tokens):8.1f}"
            f"   {size / 1e9:7.1f}   {seconds * 1e3:13.1f}   {seconds / tokens * 1e6:12.0f}"
        )


def show_products() -> None:
    """Compute 64 tokens one by one, and grouped by expert."""
    torch.manual_seed(0)
    tokens, per_token, count, hidden = 64, 4, 16, 32
    x, matrices = torch.randn(tokens, hidden), torch.randn(count, hidden, hidden)
    calls = []

    def expert(index: int, rows: torch.Tensor) -> torch.Tensor:
        calls.append(index)
        return rows @ matrices[index]

    chosen, weights = choose_experts(torch.randn(tokens, count), per_token, normalized=True)
    grouped = mix_experts(x, chosen, weights, expert)
    num_grouped = len(calls)
    one_by_one = torch.cat(
        [
            mix_experts(x[i : i + 1], chosen[i : i + 1], weights[i : i + 1], expert)
            for i in range(tokens)
        ]
    )
    num_alone = len(calls) - num_grouped
    same = torch.allclose(one_by_one, grouped, atol=1e-4)
    print(f"\n2. {tokens} tokens, {per_token} of {count} experts each")
    print(f"   experts' weights read, token by token   {num_alone:4}")
    print(f"   experts' weights read, grouped          {num_grouped:4}")
    print(f"   the results are {'equal' if same else 'different'}")


if __name__ == "__main__":
    main()

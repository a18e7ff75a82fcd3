"""The runner of steps with guesses, on a CPU."""

from torch import Tensor

from minimal_vllm.runner.plain import PlainRunner
from minimal_vllm.sampling.sampler import Sampled
from minimal_vllm.speculation.rows import accept, sampling_rows
from minimal_vllm.step.plan import Plan


class SpeculatingRunner(PlainRunner):
    """Runner that samples at the place of each guess, and keeps the guesses that hold.

    Each place has the random number that it has without guesses, so the tokens are the same.
    """

    def sample(self, logits: Tensor, plan: Plan) -> Sampled:
        """Sample the tokens of a step from its logits, several for a request with guesses."""
        return accept(plan, self.sampler(logits, sampling_rows(plan)))

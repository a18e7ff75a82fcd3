"""How fast an answer must be to count as a good one."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Slo:
    """A service level objective: limits of a request's latencies, in milliseconds.

    The rate of requests that meet one is the *goodput* (Zhong et al., *DistServe*, OSDI 2024).
    """

    ttft: float = math.inf
    """To the first token."""
    tpot: float = math.inf
    """Of each token after it, on average."""
    e2el: float = math.inf
    """To the last token."""

    @classmethod
    def parse(cls, text: str) -> "Slo":
        """Read ``ttft:500,tpot:50``, in milliseconds, as ``vllm bench serve --goodput`` has them.

        Raises:
            ValueError: it is none.
        """
        try:
            pairs = [part.split(":") for part in text.replace(",", " ").split()]
            limits = {name: float(limit) for name, limit in pairs}
            if len(limits) == len(pairs) > 0 and all(limit > 0 for limit in limits.values()):
                return cls(**limits)
        except (ValueError, TypeError):
            pass
        raise ValueError(
            f"an objective is one or several of ttft, tpot and e2el with milliseconds, such as "
            f"ttft:500,tpot:50, not {text!r}"
        )

    def is_met(self, ttft: float, tpot: float, e2el: float) -> bool:
        """Whether a request with these latencies, in seconds, was fast enough."""
        limits = ((ttft, self.ttft), (tpot, self.tpot), (e2el, self.e2el))
        return all(1e3 * seconds <= most for seconds, most in limits)

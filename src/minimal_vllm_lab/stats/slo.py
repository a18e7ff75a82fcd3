"""Service level objectives: latency limits that a good request must meet."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Slo:
    """Service level objective: limits on a request's latencies, in milliseconds.

    The rate of requests that meet it is the *goodput* (Zhong et al., *DistServe*, OSDI 2024).
    """

    ttft: float = math.inf
    """Limit on the time to first token."""
    tpot: float = math.inf
    """Limit on the mean time per output token after the first."""
    e2el: float = math.inf
    """Limit on the end-to-end latency, that is the time to the last token."""

    @classmethod
    def parse(cls, text: str) -> "Slo":
        """Parse limits such as ``ttft:500,tpot:50``, in ms, as in ``vllm bench serve --goodput``.

        Raises:
            ValueError: the text is not a list of known names with positive limits.
        """
        try:
            pairs = [part.split(":") for part in text.replace(",", " ").split()]
            limits = {name: float(limit) for name, limit in pairs}
            if len(limits) == len(pairs) > 0 and all(limit > 0 for limit in limits.values()):
                return cls(**limits)
        except (ValueError, TypeError):
            pass
        raise ValueError(
            f"a service level objective lists limits in milliseconds for ttft, tpot or e2el, such "
            f"as ttft:500,tpot:50, not {text!r}"
        )

    def is_met(self, ttft: float, tpot: float, e2el: float) -> bool:
        """Return whether a request with these latencies, in seconds, is within the limits."""
        limits = ((ttft, self.ttft), (tpot, self.tpot), (e2el, self.e2el))
        return all(1e3 * seconds <= limit for seconds, limit in limits)

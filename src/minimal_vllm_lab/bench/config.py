"""Configuration of benchmarks, with the names of ``vllm bench``."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator
from pydantic.dataclasses import dataclass

from minimal_vllm_lab.stats.slo import Slo

_CONFIG = ConfigDict(extra="forbid", use_attribute_docstrings=True)

PositiveInt = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Ratio = Annotated[float, Field(ge=0, lt=1)]
PositiveFloat = Annotated[float, Field(gt=0)]

COMPLETIONS, CHAT = "/completions", "/chat/completions"

METRICS = {
    "ttft": "Time to First Token",
    "tpot": "Time per Output Token (excl. 1st token)",
    "itl": "Inter-token Latency",
    "e2el": "End-to-end Latency",
}
"""Latencies measured for each request, with their names in a report."""


@dataclass(frozen=True, config=_CONFIG)
class Workload:
    """Requests of a benchmark. A field's prefix names the dataset that it belongs to."""

    dataset_name: Literal["random", "prefix_repetition"] = "random"
    """random: prompts of random words. prefix_repetition: many prompts share a prefix."""
    num_prompts: PositiveInt = 1000
    """Number of requests."""
    seed: Count = 0
    """Seed of the prompts, their lengths and their arrival times. Another seed makes other prompts,
    which a server can't have in its prefix cache from an earlier run."""
    random_input_len: PositiveInt = 1024
    """Number of tokens in a prompt, in addition to its prefix."""
    random_output_len: PositiveInt = 128
    """Number of tokens in an output."""
    random_range_ratio: Ratio = 0.0
    """Half-width of uniform lengths: they range from 1 - ratio to 1 + ratio times the given
    lengths."""
    random_prefix_len: Count = 0
    """Number of tokens at the start that all prompts share."""
    prefix_repetition_prefix_len: PositiveInt = 256
    """Number of tokens in a prefix."""
    prefix_repetition_suffix_len: PositiveInt = 256
    """Number of tokens in a prompt after its prefix."""
    prefix_repetition_num_prefixes: PositiveInt = 10
    """Number of prefixes. Each is used equally often, in random order."""
    prefix_repetition_output_len: PositiveInt = 128
    """Number of tokens in an output."""


@dataclass(frozen=True, config=_CONFIG)
class Load:
    """Server to send requests to, arrival times, and contents of the report of bench serve."""

    base_url: str | None = None
    """URL of the server, such as https://example.com:8000. Default: http at the given host and
    port."""
    host: str = "127.0.0.1"
    """Host of the server."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    """Port of the server."""
    endpoint: str = "/v1/completions"
    """Path of the endpoint; it must end in /completions or /chat/completions."""
    model: str | None = None
    """Name of the model. Default: the first model that the server lists."""
    request_rate: list[PositiveFloat] | None = None
    """Requests per second, at random times. inf (the default): all at once. Several rates are run
    one after the other."""
    burstiness: PositiveFloat = 1.0
    """Shape of the gamma distribution of the gaps between arrivals. 1 is a Poisson process; smaller
    values give bursts, larger ones more regular arrivals."""
    max_concurrency: PositiveInt | None = None
    """Maximum number of requests in progress. Others wait in the client, which does not count as
    latency."""
    num_warmups: Count = 0
    """Number of warm-up requests, sent all at once and not measured."""
    ignore_eos: bool = True
    """Generate outputs of the full length even if the model ends earlier. Only vLLM-compatible
    servers support this."""
    extra_body: dict[str, Any] | None = None
    """Additional fields for each request, such as {"temperature": 0}."""
    goodput: list[str] | None = None
    """Latency limits of a good request, in ms: one or more of ttft:100 tpot:20 e2el:1000."""
    percentile_metrics: str = ",".join(METRICS)
    """Latencies whose distribution is reported."""
    metric_percentiles: str = "99"
    """Percentiles to report, such as 50,90,99."""
    label: str | None = None
    """Prefix of the result file's name. Default: openai or openai-chat."""
    save_result: bool = False
    """Write the result of each rate to a JSON file."""
    save_detailed: bool = False
    """Include each request's times, lengths, text and error in that file."""
    result_dir: str = "."
    """Folder for result files."""
    result_filename: str | None = None
    """Name of the result file. Default: made of label, rate, model and date."""
    plot: str | None = None
    """File to plot latencies over rates to; its suffix selects the format."""

    @field_validator("endpoint")
    @classmethod
    def _endpoint_is_known(cls, endpoint: str) -> str:
        if not endpoint.endswith(COMPLETIONS):
            raise ValueError(f"must end in {COMPLETIONS} or {CHAT}, not {endpoint!r}")
        return endpoint

    @field_validator("goodput")
    @classmethod
    def _goodput_is_an_objective(cls, pairs: list[str] | None) -> list[str] | None:
        if pairs:
            Slo.parse(" ".join(pairs))
        return pairs

    @field_validator("percentile_metrics")
    @classmethod
    def _metrics_are_known(cls, names: str) -> str:
        unknown = [name for name in names.split(",") if name not in METRICS]
        if unknown:
            raise ValueError(f"unknown metric {unknown[0]!r}: choose from {','.join(METRICS)}")
        return names

    @field_validator("metric_percentiles")
    @classmethod
    def _percentiles_are_numbers(cls, text: str) -> str:
        parse_percentiles(text)
        return text

    @property
    def url(self) -> str:
        """URL of the server, without a trailing slash."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return (self.base_url or f"http://{host}:{self.port}").rstrip("/")

    @property
    def is_chat(self) -> bool:
        """True if requests go to the chat endpoint."""
        return self.endpoint.endswith(CHAT)

    @property
    def rates(self) -> list[float]:
        """Request rate of each run, in requests per second."""
        return self.request_rate or [float("inf")]

    @property
    def slo(self) -> Slo | None:
        """Objective that good requests meet; None if no limits are given."""
        return Slo.parse(" ".join(self.goodput)) if self.goodput else None

    @property
    def percentiles(self) -> list[float]:
        """Percentiles to report, between 0 and 100."""
        return parse_percentiles(self.metric_percentiles)


def parse_percentiles(text: str) -> list[float]:
    """Parse ``"50,99.9"`` to ``[50.0, 99.9]``.

    Raises:
        ValueError: the text is not a list of numbers between 0 and 100.
    """
    try:
        percentiles = [float(each) for each in text.split(",")]
    except ValueError:
        percentiles = []
    if not percentiles or not all(0 <= each <= 100 for each in percentiles):
        raise ValueError(f"must be numbers from 0 to 100, such as 50,90,99, not {text!r}")
    return percentiles

"""What a benchmark sends and how, with the names of ``vllm bench``."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator
from pydantic.dataclasses import dataclass

from minimal_vllm_lab.stats.slo import Slo

_CONFIG = ConfigDict(extra="forbid")

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
"""What is measured of each request."""


@dataclass(frozen=True, config=_CONFIG)
class Workload:
    """The requests of a benchmark; a field belongs to the dataset that its name begins with."""

    dataset_name: Literal["random", "prefix_repetition"] = "random"
    """random: prompts of random words; prefix_repetition: many of them begin alike."""
    num_prompts: PositiveInt = 1000
    """How many requests."""
    seed: Count = 0
    """Seeds the prompts, their lengths and their times: another one makes other prompts, which a
    server can't have in its prefix cache from the last run."""
    random_input_len: PositiveInt = 1024
    """Tokens of a prompt, behind its prefix."""
    random_output_len: PositiveInt = 128
    """Tokens of an output."""
    random_range_ratio: Ratio = 0.0
    """Lengths are uniform between (1 - this) and (1 + this) times those."""
    random_prefix_len: Count = 0
    """Tokens that all prompts begin with."""
    prefix_repetition_prefix_len: PositiveInt = 256
    """Tokens of a prefix."""
    prefix_repetition_suffix_len: PositiveInt = 256
    """Tokens of a prompt behind its prefix."""
    prefix_repetition_num_prefixes: PositiveInt = 10
    """How many prefixes there are; prompts take turns, in random order."""
    prefix_repetition_output_len: PositiveInt = 128
    """Tokens of an output."""


@dataclass(frozen=True, config=_CONFIG)
class Load:
    """Where ``bench serve`` sends its requests, when, and what it tells of them."""

    base_url: str | None = None
    """The server, such as https://example.com:8000; None: http, at this host and port."""
    host: str = "127.0.0.1"
    """The server's address."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    """Its port."""
    endpoint: str = "/v1/completions"
    """The path: one that ends in /completions or in /chat/completions."""
    model: str | None = None
    """The model's name; None: the first that the server lists."""
    request_rate: list[PositiveFloat] | None = None
    """Requests per second, at random times; inf: all at once, which is the default. Several rates
    are run one after another."""
    burstiness: PositiveFloat = 1.0
    """1: a Poisson process; less: arrivals in bursts; more: arrivals at even distances (the times
    between them are of a gamma distribution with this shape)."""
    max_concurrency: PositiveInt | None = None
    """No more requests at once: others wait here, which does not count as latency."""
    num_warmups: Count = 0
    """So many requests before, all at once, which don't count."""
    ignore_eos: bool = True
    """Make outputs as long as is asked for, whatever the model says; only servers like vLLM know
    the field."""
    extra_body: dict[str, Any] | None = None
    """More fields for each request, such as {"temperature": 0}."""
    goodput: list[str] | None = None
    """What a good request keeps to, in ms: ttft:100 tpot:20 e2el:1000, or some of these."""
    percentile_metrics: str = ",".join(METRICS)
    """What to tell the distribution of."""
    metric_percentiles: str = "99"
    """Which percentiles, such as 50,90,99."""
    label: str | None = None
    """Begins the name of a result's file; None: openai, or openai-chat."""
    save_result: bool = False
    """Write each rate's result to a JSON file."""
    save_detailed: bool = False
    """Let it hold each request's times, lengths, text and error, too."""
    result_dir: str = "."
    """The folder for such files."""
    result_filename: str | None = None
    """The file's name; None: made of label, rate, model and date."""
    plot: str | None = None
    """Draw latencies against the rates to this file; its suffix is the format."""

    @field_validator("endpoint")
    @classmethod
    def _endpoint_is_known(cls, endpoint: str) -> str:
        if not endpoint.endswith(COMPLETIONS):
            raise ValueError(f"should end in {COMPLETIONS} or {CHAT}, not {endpoint!r}")
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
            raise ValueError(f"there is no {unknown[0]!r}: choose from {','.join(METRICS)}")
        return names

    @field_validator("metric_percentiles")
    @classmethod
    def _percentiles_are_numbers(cls, text: str) -> str:
        parse_percentiles(text)
        return text

    @property
    def url(self) -> str:
        """The server's address, without a slash at its end."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return (self.base_url or f"http://{host}:{self.port}").rstrip("/")

    @property
    def is_chat(self) -> bool:
        """Whether requests are conversations."""
        return self.endpoint.endswith(CHAT)

    @property
    def rates(self) -> list[float]:
        """Requests per second of each run."""
        return self.request_rate or [float("inf")]

    @property
    def slo(self) -> Slo | None:
        """What a good request keeps to."""
        return Slo.parse(" ".join(self.goodput)) if self.goodput else None

    @property
    def percentiles(self) -> list[float]:
        """Between 0 and 100."""
        return parse_percentiles(self.metric_percentiles)


def parse_percentiles(text: str) -> list[float]:
    """``"50,99.9"`` as ``[50.0, 99.9]``.

    Raises:
        ValueError: one is not between 0 and 100.
    """
    try:
        percentiles = [float(each) for each in text.split(",")]
    except ValueError:
        percentiles = []
    if not percentiles or not all(0 <= each <= 100 for each in percentiles):
        raise ValueError(f"should be like 50,90,99, not {text!r}")
    return percentiles

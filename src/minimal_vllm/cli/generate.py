"""``minimal-vllm generate``: complete prompts."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from minimal_vllm.cli.errors import StepFailure
from minimal_vllm.cli.options import SectionedCommand, field_options
from minimal_vllm.cli.prompts import read_prompts
from minimal_vllm.cli.session import WITHOUT_EFFECT, load_llm, sampling_params, stream
from minimal_vllm.cli.summary import RunSummary
from minimal_vllm.cli.trace import trace_options
from minimal_vllm.config import EngineConfig
from minimal_vllm.outputs import CompletionOutput, RequestOutput, TokenLogprobs
from minimal_vllm.sampling_params import SamplingParams

if TYPE_CHECKING:
    from minimal_vllm.llm import LLM


@trace_options
@field_options(EngineConfig, without={"chat_template", *WITHOUT_EFFECT})
@field_options(SamplingParams, defaults={"max_tokens": 128})
@click.command(cls=SectionedCommand, short_help="Complete prompts.")
@click.argument("prompts", metavar="[PROMPT]...", nargs=-1)
@click.option(
    "--input",
    "input_file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="File to read prompts from ('-': standard input), one per line. In a .jsonl file each "
    'line is {"prompt": …} or {"prompt_token_ids": …}.',
)
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON per prompt.")
@click.option("--stats", is_flag=True, help="Print speed and use of the KV cache at the end.")
@click.pass_context
def generate(
    ctx: click.Context,
    /,
    prompts: Sequence[str],
    input_file: Path | None,
    as_json: bool,
    stats: bool,
    **options: Any,
) -> None:
    """Complete each PROMPT. '-', or no PROMPT, reads one prompt from standard input.

    A single completion is printed while it is generated. Several prompts are computed together.
    """
    if not as_json and {options["logprobs"], options["prompt_logprobs"]} != {None}:
        raise click.UsageError("--logprobs and --prompt-logprobs need --json to be printed.")
    wanted = read_prompts(prompts, input_file)
    summary = RunSummary()
    llm = load_llm(ctx, [summary] if stats else [])
    params = sampling_params(ctx, llm)
    has_text = params.detokenize and not llm.config.skip_tokenizer_init

    if len(wanted) == params.n == 1 and isinstance(wanted[0], str) and has_text and not as_json:
        _stream(llm, wanted[0], params)
    else:
        outputs = llm.generate(wanted, params, use_tqdm=sys.stderr.isatty())
        if as_json:
            _print_json(outputs)
        else:
            _print_text(outputs, has_text)
        _check(outputs)
    if stats:
        click.echo(summary, err=True)


def _stream(llm: "LLM", prompt: str, params: SamplingParams) -> None:
    if sys.stdout.isatty():  # a file or a pipe gets the completion only
        click.secho(prompt, dim=True, nl=False)
    stream(llm, llm.tokenizer.encode(prompt), params)


def _print_text(outputs: Sequence[RequestOutput], has_text: bool) -> None:
    for number, output in enumerate(outputs, 1):
        for completion in output.outputs:
            which = f", completion {completion.index + 1}" if len(output.outputs) > 1 else ""
            click.secho(f"==> prompt {number} of {len(outputs)}{which} <==", bold=True)
            click.secho(output.prompt or "", dim=True, nl=False)
            click.echo(f"{completion.text if has_text else completion.token_ids}\n")


def _print_json(outputs: Sequence[RequestOutput]) -> None:
    for output in outputs:
        line: dict[str, Any] = {
            "request_id": output.request_id,
            "prompt": output.prompt,
            "prompt_token_ids": output.prompt_token_ids,
            "outputs": [_completion_json(completion) for completion in output.outputs],
            "num_cached_tokens": output.num_cached_tokens,
        }
        if output.prompt_logprobs is not None:
            line["prompt_logprobs"] = [
                each and _position_json(each) for each in output.prompt_logprobs
            ]
        click.echo(json.dumps(line, ensure_ascii=False))


def _completion_json(completion: CompletionOutput) -> dict[str, Any]:
    fields = asdict(replace(completion, logprobs=None))  # asdict would copy them for nothing
    if completion.logprobs is None:
        del fields["logprobs"], fields["cumulative_logprob"]
    else:
        fields["logprobs"] = [_position_json(each) for each in completion.logprobs]
    return fields


def _position_json(position: TokenLogprobs) -> dict[int, dict[str, Any]]:
    return {token_id: asdict(logprob) for token_id, logprob in position.items()}


def _check(outputs: Sequence[RequestOutput]) -> None:
    for number, output in enumerate(outputs, 1):
        for completion in output.outputs:
            if completion.finish_reason == "error":
                raise StepFailure(f"prompt {number} failed: {completion.stop_reason}")

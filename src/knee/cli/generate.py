"""`knee generate`: complete one prompt; the text streams to stdout, everything else goes to stderr."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from knee.cli.options import (
    block_size_option,
    ignore_eos_option,
    kv_cache_option,
    max_new_tokens_option,
    model_options,
    overlap_option,
    prompt_ids_option,
    sampling_options,
    settle,
)
from knee.cli.terminal import json_option, lang_option, print_json, tell
from knee.errors import UserError
from knee.lab.visible import visible

if TYPE_CHECKING:
    from knee.engine.engine import Engine
    from knee.engine.types import Request, SamplingParams, TokenEvent
    from knee.lab.messages import Lang
    from knee.llm import LLM


@click.command()
@click.argument("prompt", required=False)
@prompt_ids_option()
@click.option("--chat", is_flag=True, help="Put the prompt through the model's chat template.")
@click.option("--system", help="System message of the chat.")
@max_new_tokens_option(64)
@ignore_eos_option(False)
@click.option("--stop", multiple=True, help="End the text before this string; repeat it for several.")
@click.option("--logprobs", type=int, help="Show the log probabilities of this many candidates a token.")
@sampling_options
@model_options
@kv_cache_option
@block_size_option
@overlap_option
@json_option
@lang_option
def command(
    prompt: str | None,
    prompt_ids: tuple[tuple[int, ...], ...],
    chat: bool,
    system: str | None,
    model: str,
    device: str,
    dtype: str,
    threads: int | None,
    batch_invariant: str | None,
    kv_cache: str,
    block_size: int | None,
    overlap: str | None,
    as_json: bool,
    lang: Lang,
    **sampling: Any,
) -> None:
    """Complete a prompt and print the text as it comes."""
    from knee.engine.policies import make_policy
    from knee.engine.types import SamplingParams
    from knee.llm import LLM

    params = SamplingParams(**sampling)
    given = _one_prompt(prompt, prompt_ids, chat, system)
    settle({"device": device, "dtype": dtype, "threads": threads, "overlap": overlap})
    _warn_of_threads(threads, lang)
    llm = LLM.load(model, device, dtype, threads, batch_invariant != "off")
    ids = _encode(llm, given, chat, system)
    engine = llm.engine(
        make_policy("single", max_batched_tokens=llm.device.token_budget_default),
        longest=len(ids) + params.max_new_tokens,
        kv_cache=kv_cache == "on",
        block_size=block_size,
        overlap=overlap != "off",
    )
    request = engine.submit(ids, params)
    events = _stream(engine, quiet=as_json)
    if as_json:
        print_json(_document(llm, request, events, params))
    else:
        if params.logprobs is not None:
            _show_logprobs(llm, events, lang)
        _summary(llm, request, lang)


def _warn_of_threads(threads: int | None, lang: Lang) -> None:
    from knee.lab.messages import text
    from knee.machine import usable_cores

    if threads is not None and threads > (cores := usable_cores()):
        tell(text(lang, "run.warning", message=text(lang, "warning.threads", threads=threads, cores=cores)))


def _one_prompt(
    prompt: str | None, prompt_ids: tuple[tuple[int, ...], ...], chat: bool, system: str | None
) -> str | tuple[int, ...]:
    given: list[str | tuple[int, ...]] = [*prompt_ids] if prompt is None else [prompt, *prompt_ids]
    if len(given) != 1:
        count = f"{len(given)} prompts are" if given else "no prompt is"
        raise UserError(f"{count} given: give one, as PROMPT or with --prompt-ids")
    if system is not None and not chat:
        raise UserError("--system is part of a chat: add --chat, or leave it out")
    if chat and prompt is None:
        raise UserError("--chat needs a text: give PROMPT instead of --prompt-ids")
    return given[0]


def _encode(llm: LLM, given: str | tuple[int, ...], chat: bool, system: str | None) -> list[int]:
    if not isinstance(given, str):
        return list(given)
    if not chat or llm.tokenizer is None:
        return llm.encode(given)
    turns = [] if system is None else [{"role": "system", "content": system}]
    text = llm.tokenizer.apply_chat_template([*turns, {"role": "user", "content": given}])
    return llm.tokenizer.encode(text, add_special_tokens=False)


def _stream(engine: Engine, quiet: bool) -> list[TokenEvent]:
    """Run to the end; print each piece of text when it is there, unless quiet."""
    events = []
    for result in engine.run():
        for event in result.events:
            events.append(event)
            if not quiet:
                click.echo(harmless(event.text), nl=False)
    if not quiet:
        click.echo()
    return events


def harmless(text: str) -> str:
    """Text that breaks lines and indents and cannot do anything else to a terminal."""
    return "\n".join("\t".join(map(visible, line.split("\t"))) for line in text.split("\n"))


# --- what is said about it ---------------------------------------------------------------------------------------


def _document(llm: LLM, request: Request, events: list[TokenEvent], params: SamplingParams) -> dict[str, Any]:
    assert request.finish_reason is not None
    document: dict[str, Any] = {
        "prompt_token_ids": list(request.prompt),
        "token_ids": request.output,
        "text": request.text if llm.tokenizer else None,
        "finish_reason": request.finish_reason.value,
        "model": {
            "name": llm.checkpoint.name,
            "dtype": llm.device.dtype,
            "dtype_reason": llm.device.dtype_reason or None,
            "device": llm.device.name,
        },
        "metrics": _metrics(request) | {"load_model_ms": llm.load_times.model_ms},
    }
    if params.logprobs is not None:
        document["logprobs"] = [_candidates(llm, event) for event in events]
    return document


def _metrics(request: Request) -> dict[str, float | int | None]:
    """Times of this one run, cold as it is; see `knee baseline` for warm ones."""
    assert request.prefill_start is not None
    times = request.token_times
    prefill, loop = times[0] - request.prefill_start, times[-1] - times[0]
    return {
        "prompt_tokens": len(request.prompt),
        "output_tokens": len(times),
        "prefill_ms": prefill * 1e3,
        "decode_loop_ms": loop * 1e3,
        "decode_ms_per_step": loop / (len(times) - 1) * 1e3 if len(times) > 1 else None,
        "total_generate_ms": (prefill + loop) * 1e3,
        "output_tokens_per_s": len(times) / (prefill + loop) if prefill + loop else None,
    }


def _candidates(llm: LLM, event: TokenEvent) -> dict[str, Any]:
    def named(token: int, logprob: float | None) -> dict[str, Any]:
        return {"token_id": token, "token": _token(llm, token), "logprob": logprob}

    top = [named(candidate.token_id, candidate.logprob) for candidate in event.top]
    return named(event.token_id, event.logprob) | {"top": top}


def _token(llm: LLM, token: int) -> str | None:
    return llm.tokenizer.token_text(token) if llm.tokenizer else None


def _show_logprobs(llm: LLM, events: list[TokenEvent], lang: Lang) -> None:
    from knee.cli.display import print_logprobs

    print_logprobs([_candidates(llm, event) for event in events], lang)


def _summary(llm: LLM, request: Request, lang: Lang) -> None:
    from knee.lab.messages import dtype_notes, text

    values = _metrics(request)
    each = values["decode_ms_per_step"]
    tell(text(lang, "generate.summary" if each is not None else "generate.summary_one", **values))
    device = llm.device
    heading = text(lang, "run.heading", model=llm.checkpoint.name, dtype=device.dtype, device=device.name)
    tell(" · ".join([heading, *dtype_notes(device.dtype, device.dtype_reason, lang)]))

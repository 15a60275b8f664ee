"""The options that commands share, as decorators. Lists and numbers are checked as they are read, NaN in none of them.

What a value means is not this file's business: ranges are checked where the value is used, before anything is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from knee.cli.terminal import json_option, lang_option, out_option

Command = TypeVar("Command", bound=Callable[..., Any])
Decorator = Callable[[Command], Command]

DEFAULT_MODEL = "smollm2-135m"


class Number(click.ParamType[float]):
    """A finite number."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            number = float(value)
        except ValueError:
            self.fail(f"{value!r} is not a number.", param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


class Several(click.ParamType[tuple[Any, ...]]):
    """Values with commas between them: 1,4,8."""

    def __init__(self, item: click.ParamType[Any], name: str) -> None:
        self.item = item
        self.name = name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        if isinstance(value, tuple):  # a default
            return value
        try:
            return tuple(self.item.convert(part.strip(), param, ctx) for part in value.split(","))
        except click.BadParameter as error:
            self.fail(f"{error.message} The form is {self.name}", param, ctx)


NUMBER = Number()
WHOLE_NUMBERS = Several(click.INT, "1,2,…")
NUMBERS = Several(NUMBER, "0,10,…")
NAMES = Several(click.STRING, "name,…")


def combined(*options: Decorator[Any]) -> Decorator[Any]:
    """One decorator for several options, shown in this order."""

    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


model_options = combined(
    click.option(
        "--model",
        default=DEFAULT_MODEL,
        show_default=True,
        help="Alias, hub id, folder with config.json and safetensors, or .gguf file.",
    ),
    click.option("--device", default="auto", show_default=True, help="auto or cuda or cpu or reference."),
    click.option(
        "--dtype",
        default="auto",
        show_default=True,
        help="Of the weights: auto or float32 or bfloat16 or float16 or int8 or int4. "
        "auto is the narrowest that keeps the file's values; on a GPU 16 bits.",
    ),
    click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: one a usable core]"),
    click.option(
        "--batch-invariant",
        type=click.Choice(["on", "off"]),
        help="off: faster prefill on a GPU, but tokens may depend on the batch.  [default: on]",
    ),
)


def prompt_ids_option(help: str = "The prompt as token ids, 1,2,3; needs no tokenizer.") -> Decorator[Any]:
    """`--prompt-ids` with the command's own help."""
    return click.option("--prompt-ids", type=WHOLE_NUMBERS, multiple=True, help=help)


def _prompt_options(text: str, ids: str, file: str) -> Decorator[Any]:
    return combined(
        click.option("--prompt", "prompts", multiple=True, help=text),
        prompt_ids_option(ids),
        click.option("--prompts-file", type=click.Path(path_type=Path), help=file),
    )


_FORMS = '{"prompt": "…"} or {"prompt_ids": [1, 2]}'

prompts_options = _prompt_options(
    "A prompt; repeat it for several.  [default: 16 built-in ones]",
    "A prompt as token ids, 1,2,3; repeat it for several. Needs no tokenizer.",
    f"JSONL, each line {_FORMS}.",
)

one_prompt_options = _prompt_options(
    "The prompt.  [default: the built-in one]",
    "The prompt as token ids, 1,2,3; needs no tokenizer.",
    f"JSONL of one line, {_FORMS}.",
)

run_options = combined(
    click.option("--name", help="Name of the experiment.  [default: the command's]"),
    out_option,
    json_option,
    lang_option,
)

kv_cache_option = click.option(
    "--kv-cache",
    type=click.Choice(["on", "off"]),
    default="on",
    show_default=True,
    help="off recomputes the whole prefix at every step.",
)

block_size_option = click.option(
    "--block-size",
    type=click.IntRange(min=1),
    help="Tokens in a block of the KV cache.  [default: what suits the device: 16 on the CPU]",
)

overlap_option = click.option(
    "--overlap",
    type=click.Choice(["on", "off"]),
    help="Plan and start a step while the one before runs.  [default: on where the device can: not on the CPU]",
)


def settle(options: dict[str, Any]) -> None:
    """Fill in what was left to the device, so that a record says what was used; loads nothing.

    Raises `UserError` where the device is not there, or cannot do what is asked.
    """
    from knee.devices import choose_device
    from knee.errors import UserError

    device = choose_device(options["device"], options["dtype"], options["threads"])
    suits: dict[str, Any] = {"block_size": device.block_size_default, "max_batched_tokens": device.token_budget_default}
    if device.overlaps:
        suits["overlap"] = "on"
    elif options.get("overlap") == "on":
        raise UserError(f"device {device.name} runs one step after the other: leave --overlap out")
    options.update({name: value for name, value in suits.items() if name in options and options[name] is None})


sampling_options = combined(
    click.option("--temperature", type=NUMBER, default=0.0, show_default=True, help="0 is greedy."),
    click.option("--top-k", type=int, default=0, help="Only the k likeliest tokens; 0 is off."),
    click.option("--top-p", type=NUMBER, default=1.0, help="Only the likeliest tokens up to this probability."),
    click.option("--min-p", type=NUMBER, default=0.0, help="Only tokens this likely relative to the likeliest."),
    click.option("--repetition-penalty", type=NUMBER, default=1.0, help="Above 1 makes repeats less likely."),
    click.option("--seed", type=int, default=0, show_default=True, help="Start of the random generator."),
)


def max_new_tokens_option(default: int) -> Decorator[Any]:
    """`--max-new-tokens` with the command's own default."""
    return click.option("--max-new-tokens", type=int, default=default, show_default=True, help="Length of the output.")


def ignore_eos_option(default: bool) -> Decorator[Any]:
    """`--ignore-eos/--no-ignore-eos` with the command's own default."""
    return click.option(
        "--ignore-eos/--no-ignore-eos",
        default=default,
        show_default=True,
        help="Go on after the end of the text, so that every request gets all its tokens.",
    )

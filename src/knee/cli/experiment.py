"""What the commands that run an experiment share: reading their options, running, showing the result."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import click

from knee.cli.terminal import print_json, tell
from knee.errors import UserError
from knee.lab.experiment import Outcome, Setting, Sink, draft, perform
from knee.lab.markdown import advised
from knee.lab.messages import text
from knee.lab.progress import Progress
from knee.lab.records import BatchPolicy, Kind, Record
from knee.lab.spec import RunSpec
from knee.lab.workload import DEFAULT_PROMPT, Prompt, Source, Workload, encode_sources, gather_sources
from knee.llm import LLM

Options = Mapping[str, Any]

TOKENS_DIFFER = frozenset({"tokens_differ", "kv_cache_tokens_differ", "generate_differs"})


def one_source(options: Options) -> Source:
    """The one prompt of a command that runs one request, the log's by default. Raises `UserError` for more."""
    sources = gather_sources(options["prompts"], options["prompt_ids"], options["prompts_file"])
    if len(sources) > 1:
        raise UserError(f"{len(sources)} prompts are given, and this command runs one: give one")
    return sources[0] if sources else DEFAULT_PROMPT


def encode_one(llm: LLM, source: Source) -> tuple[Prompt, float | None]:
    """Token ids of a prompt, and the milliseconds that a text took. Raises `RequestError` for an empty one."""
    started = time.perf_counter()
    [prompt] = encode_sources([source], llm.encode)
    return prompt, (time.perf_counter() - started) * 1e3 if isinstance(source, str) else None


def load(options: Options) -> LLM:
    """The model that the options name."""
    invariant = options["batch_invariant"] != "off"
    return LLM.load(options["model"], options["device"], options["dtype"], options["threads"], invariant)


def run_experiment(
    kind: Kind,
    llm: LLM,
    workload: Workload,
    policy: BatchPolicy,
    options: Options,
    measure: Callable[[Sink, Progress], Outcome],
) -> None:
    """Measure, keep, show. Leaves with exit code 1 where tokens differ that must not."""
    from knee.cli.display import progress_bar

    setting = setting_of(kind, options)
    record = draft(kind, llm, workload, policy, options.get("kv_cache", "on") == "on", setting)
    with progress_bar() as progress:
        keep_and_show(record, setting, options, lambda sink: measure(sink, progress))


def keep_and_show(
    record: Record,
    setting: Setting,
    options: Options,
    measure: Callable[[Sink], Outcome | None],
    begin: RunSpec | None = None,
) -> None:
    """Measure into a run folder, then print what came of it and where it is."""
    from knee.cli.display import print_record

    lang, path = options["lang"], Path()

    def opened(folder: Path) -> None:
        nonlocal path
        path = folder

    try:
        record = perform(record, setting, measure, opened, begin)
    except KeyboardInterrupt:
        tell(text(lang, "run.interrupted", path=path))
        if record.kind == "sweep":
            tell(text(lang, "run.go_on", run=path.name))
        raise
    if options["as_json"]:
        print_json(record.model_dump(mode="json") | {"path": str(path)})
    else:
        print_record(record, lang)
    _conclude(record, path, options)


def _conclude(record: Record, path: Path, options: Options) -> None:
    lang = options["lang"]
    for warning in record.warnings:
        tell(text(lang, "run.warning", message=advised(warning, lang)))
    tell(text(lang, "run.kept", path=path))
    if any(warning.code in TOKENS_DIFFER for warning in record.warnings):
        _leave(1)


def _leave(code: int) -> NoReturn:
    raise click.exceptions.Exit(code)


def setting_of(kind: Kind, options: Options) -> Setting:
    """What the command says about the run beside the experiment."""
    return Setting(
        name=options["name"] or kind,
        out=options["out"],
        lang=options["lang"],
        command=["knee", *sys.argv[1:]],
        options=_by_their_names(options),
        resume=options.get("resume"),
    )


def _by_their_names(options: Options) -> dict[str, Any]:
    """Options as a record keeps them: under the names that the user types, in values that JSON has."""
    params = click.get_current_context().command.params
    names = {param.name: param.opts[-1].lstrip("-").replace("-", "_") for param in params}
    return {names[name]: _plain(value) for name, value in options.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value

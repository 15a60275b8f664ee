"""`knee models`: the models that have a name, where their files are, and fetching them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from knee.cli.terminal import json_option, lang_option, print_json, print_table
from knee.errors import UserError

if TYPE_CHECKING:
    from knee.lab.messages import Lang
    from knee.weights.catalog import ListedModel


@click.group()
def command() -> None:
    """List, fetch and find models."""


@command.command("list")
@json_option
@lang_option
def list_command(as_json: bool, lang: Lang) -> None:
    """List the models that have a short name."""
    from knee.lab.messages import text
    from knee.weights.catalog import list_models

    models = list_models()
    if as_json:
        print_json([_as_json(model) for model in models])
        return
    header = [text(lang, f"models.{name}") for name in ("alias", "source", "size", "here", "path")]
    print_table(header, [_row(model, lang) for model in models])


@command.command("pull")
@click.argument("model")
@json_option
def pull_command(model: str, as_json: bool) -> None:
    """Fetch MODEL, an alias or a hub id, unless it is here already, and print where it is."""
    from knee.weights.catalog import resolve

    path = resolve(model)
    if as_json:
        print_json({"model": model, "path": str(path)})
    else:
        click.echo(path)


@command.command("path")
@click.argument("model")
@json_option
def path_command(model: str, as_json: bool) -> None:
    """Print where MODEL is, without fetching it."""
    from knee.weights.catalog import cached_path, check_name

    path = cached_path(model)
    if path is None:
        check_name(model)
        raise UserError(f"{model} is not here: fetch it with `knee models pull {model}`")
    if as_json:
        print_json({"model": model, "path": str(path)})
    else:
        click.echo(path)


def _as_json(model: ListedModel) -> dict[str, object]:
    return {
        "alias": model.alias,
        "source": model.source,
        "cached": model.cached,
        "path": str(model.path),
        "bytes": model.size,
    }


def _row(model: ListedModel, lang: Lang) -> list[str]:
    from knee.lab.messages import text

    here = text(lang, "answer.yes" if model.cached else "answer.no")
    return [model.alias, model.source, f"{model.size / 1e6:.0f} MB", here, str(model.path) if model.cached else ""]

"""`knee`: the table of commands, and what becomes of errors. Knows no command; each is imported when it is called.

Exit codes: 0 done, 2 the user's input is wrong, 1 anything else, 130 interrupted. Ctrl-C and SIGTERM are the same.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from types import FrameType

import click

import knee
from knee.errors import KneeError, UserError

# name -> (module, what it does); the words are those of the command's own help.
COMMANDS = {
    "generate": ("generate", "Complete a prompt and print the text as it comes."),
    "baseline": ("baseline", "Measure one request: loading, prefill, decode loop."),
    "inspect": ("inspect", "Take prefill and decode apart, token by token."),
    "kvcache": ("kvcache", "Measure when the KV cache pays, and what it costs."),
    "sweep": ("sweep", "Compare batch policies, batch sizes and wait windows."),
    "models": ("models", "List, fetch and find models."),
    "doctor": ("doctor", "Measure this machine and say what would spoil an experiment on it."),
    "show": ("show", "Show the record of RUN."),
    "list": ("list_runs", "List the runs in a folder, newest first."),
    "report": (
        "report",
        "Make the HTML report of RUN and print its path, or with --log the experiment log of all runs in a folder.",
    ),
    "claims": ("claims", "Test what logs usually conclude on RUN."),
    "compare": ("compare", "Compare two runs, metric by metric."),
    "reproduce": ("reproduce", "Run the experiment of RUN again and compare."),
}


class _Commands(click.Group):
    """Imports a command's module when it is called, and none for the list of commands."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, _ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command = import_module(f"knee.cli.{COMMANDS[name][0]}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, help) for name, (_, help) in COMMANDS.items()])


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(knee.__version__, prog_name="knee")
def cli() -> None:
    """The LLM inference lab: which batch policy should I run, on this machine, with this model, and why?

    Start with `knee generate "Hello"`, then `knee baseline` and `knee sweep`. Set KNEE_DEBUG=1 for tracebacks.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command line and leave with its exit code."""
    signal.signal(signal.SIGTERM, _as_interrupt)
    code = _run(arguments)
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # `knee … | head`: the reader has had enough, and nobody is left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def _as_interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _run(arguments: Sequence[str] | None) -> int:
    try:
        return cli.main(args=arguments, prog_name="knee", standalone_mode=False) or 0
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        help = f" (see {error.ctx.command_path} --help)" if isinstance(error, click.UsageError) and error.ctx else ""
        _complain(error.format_message() + help)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 130
    except BrokenPipeError:
        return 0
    except KneeError as error:
        _complain(str(error))
        return 2 if isinstance(error, UserError) else 1
    except Exception as error:  # the outermost place: whatever it is, the user gets one line and a way to see more
        if os.environ.get("KNEE_DEBUG") == "1":
            raise
        _complain(f"unexpected {type(error).__name__}: {error} (a fault of knee; KNEE_DEBUG=1 shows where)")
        return 1


def _complain(message: str) -> None:
    """One line on stderr that cannot corrupt a terminal."""
    line = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in message)
    click.echo(f"error: {line}", err=True)

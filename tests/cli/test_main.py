"""The way in: nothing slow is imported for it, and every error becomes an exit code and one line."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest

from knee.cli import main
from knee.devices import DEVICES
from knee.errors import KneeError, UserError
from knee.lab.runs import lacks_trials, read_run
from tests.lab.pausing import IN_THE_TRIAL, gone, pausing, wait_for

SLOW = ("numpy", "rich", "pydantic", "tokenizers", "torch", "huggingface_hub", "jinja2", "gguf")


@pytest.mark.parametrize(
    "statement", ["import knee", "import knee.cli.main as m; m.cli.main(['--help'], standalone_mode=False)"]
)
def test_nothing_slow_is_imported(statement: str) -> None:
    code = f"import sys\n{statement}\nprint('loaded', sorted(set({SLOW!r}) & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.endswith("loaded []\n"), done.stderr


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as left:
        main.main(arguments)
    assert isinstance(left.value.code, int)
    return left.value.code


def broken(error: BaseException) -> click.Command:
    @click.command()
    def command() -> None:
        raise error

    return command


def fail_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> int:
    monkeypatch.setattr(main._Commands, "get_command", lambda *_: broken(error))
    return run(monkeypatch, "list")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("bad\x1b[2J prompt"), 2, "error: bad\\x1b[2J prompt\n"),
        (KneeError("two\nlines"), 1, "error: two\\nlines\n"),
        (ValueError("odd"), 1, "error: unexpected ValueError: odd (a fault of knee; KNEE_DEBUG=1 shows where)\n"),
        (click.UsageError("no such thing"), 2, "error: no such thing (see knee list --help)\n"),
        (click.exceptions.Exit(1), 1, ""),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, code: int, line: str
) -> None:
    monkeypatch.delenv("KNEE_DEBUG", raising=False)
    assert fail_with(monkeypatch, error) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == line


def test_an_interrupt_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fail_with(monkeypatch, KeyboardInterrupt()) == 130


def test_a_debugger_gets_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KNEE_DEBUG", "1")
    with pytest.raises(ValueError, match="odd"):
        fail_with_debug(monkeypatch)


def fail_with_debug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(main._Commands, "get_command", lambda *_: broken(ValueError("odd")))
    main.main(["list"])


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["sweep", "--nonsense"],
        ["sweep", "--repeats", "many"],
        ["sweep", "--wait-ms", "nan"],
        ["sweep", "--batch-sizes", "1,,2"],
        ["generate", "a", "--temperature", "inf"],
        ["generate", "a", "--kv-cache", "maybe"],
        ["baseline", "--threads", "0"],
        ["baseline", "--block-size", "0"],
        ["list", "--lang", "fr"],
    ],
)
def test_a_wrong_option_is_two_and_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert run(monkeypatch, *arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert "--help)" in captured.err


@pytest.mark.parametrize("arguments", [[], ["models"]])
def test_a_group_alone_prints_its_help(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert run(monkeypatch, *arguments) in (0, 2)
    captured = capsys.readouterr()
    said = captured.out + captured.err
    assert said.startswith("Usage: ")
    assert "\nCommands:\n" in said
    assert "\\n" not in said


def test_a_list_that_cannot_be_read_says_its_form(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "sweep", "--wait-ms", "abc") == 2
    assert "'abc' is not a number. The form is 0,10,…" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["generate", "baseline", "inspect", "kvcache", "sweep"])
def test_help_offers_the_devices_and_weight_types_that_exist(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert run(monkeypatch, name, "--help") == 0
    said = " ".join(capsys.readouterr().out.split())
    dtypes = dict.fromkeys(dtype for device in DEVICES.values() for dtype in device.dtypes)
    assert f"{' or '.join(['auto', *DEVICES])}." in said
    assert f"{' or '.join(['auto', *dtypes])}." in said
    assert ("repeat it for several" in said.replace("this string; repeat it for several", "")) == (name == "sweep")


@pytest.mark.parametrize("name", main.COMMANDS)
def test_the_table_of_commands_says_what_their_own_help_says(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert run(monkeypatch, name, "--help") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert main.COMMANDS[name][1].rstrip(".") in said


def test_the_version_is_the_package_s(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, "--version") == 0
    assert "0.1.0" in capsys.readouterr().out


# Here SIGINT may be ignored, which children inherit.
KNEE = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from knee.cli.main import main; main()"
SWEEP = ("--requests", "6", "--repeats", "2", "--max-new-tokens", "4", "--device", "reference", "--json")


def sweep(model: Path, out: Path, *more: str, code: str = KNEE) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, "sweep", "--model", str(model), "--out", str(out), *SWEEP, *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def rows(folder: Path) -> list[dict[str, object]]:
    """Of the requests, whole lines."""
    text = (folder / "requests.jsonl").read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


@pytest.mark.parametrize("trials", [1, 3])
def test_a_killed_sweep_is_resumed_and_ends_with_the_same_cells(model: Path, tmp_path: Path, trials: int) -> None:
    cells = ("--batch-sizes", "1,2")
    process = sweep(model, tmp_path, *cells)
    wait_for(lambda: process.poll() is not None or any(len(rows(path)) >= 6 * trials for path in tmp_path.glob("2*")))
    process.kill()
    process.communicate()
    [folder] = tmp_path.glob("2*")
    other = sweep(model, tmp_path, *cells, "--resume", "latest", "--seed", "3")
    _, err = other.communicate()
    assert other.returncode == 2
    assert "was begun otherwise (seed" in err

    for _ in range(5):  # on a busy machine both measurements of a trial can be void
        resumed = sweep(model, tmp_path, *cells, "--resume", folder.name)
        out, err = resumed.communicate()
        assert resumed.returncode == 0, err
        if not lacks_trials(read_run(folder)):
            break
    record = json.loads(out)
    assert (record["status"], record["path"]) == ("done", str(folder))
    assert [cell["cell"] for cell in record["metrics"]["cells"]] == [0, 1]
    assert all(len(cell["repeats"]) == 2 for cell in record["metrics"]["cells"])
    kept = [(row["cell"], row["repeat"], row["request"]) for row in rows(folder) if not row["void"]]
    assert sorted(kept) == [(c, r, n) for c in range(2) for r in range(2) for n in range(6)]
    assert record["metrics"]["same_tokens"]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_sweep_says_what_it_keeps(model: Path, tmp_path: Path, how: signal.Signals) -> None:
    marker, runs = tmp_path / "pid", tmp_path / "runs"
    child = pausing(marker, IN_THE_TRIAL)
    code = f"import sys; from knee.lab import worker; worker._COMMAND = (sys.executable, '-c', {child!r}); {KNEE}"
    process = sweep(model, runs, "--arrival", "rate:0.1", "--batch-sizes", "1", code=code)
    wait_for(lambda: marker.exists() or process.poll() is not None)
    process.send_signal(how)
    out, err = process.communicate()
    assert process.returncode == 130, err
    assert out == ""
    [folder] = runs.glob("2*")
    assert f"interrupted; what was measured is kept in {folder}" in err
    assert f"--resume {folder.name}" in err
    assert "Traceback" not in err
    assert json.loads((folder / "record.json").read_text())["status"] == "interrupted"
    assert [row["finish_reason"] for row in rows(folder)] == ["length"]
    assert gone(int(marker.read_text()))


def test_a_reader_that_has_had_enough_is_no_error(model: Path) -> None:
    command = f"{sys.executable} -c 'from knee.cli.main import main; main()' generate hi --model {model} --seed 1"
    done = subprocess.run(
        ["bash", "-c", f"{command} --max-new-tokens 300 --ignore-eos --temperature 1 | head -c 1"],
        capture_output=True,
        check=False,
    )
    assert len(done.stdout) == 1
    assert b"Traceback" not in done.stderr
    assert b"Error" not in done.stderr

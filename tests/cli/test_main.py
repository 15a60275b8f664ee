"""The way in: nothing slow is imported for it, and every error becomes an exit code and one line."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest

from knee.cli import main
from knee.devices import DEVICES
from knee.errors import KneeError, UserError

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


def sweep_process(model: Path, out: Path) -> subprocess.Popen[str]:
    arguments = ["sweep", "--model", str(model), "--out", str(out), "--device", "reference", "--json"]
    more = ["--arrival", "rate:5", "--requests", "400", "--batch-sizes", "1", "--max-new-tokens", "4"]
    code = "from knee.cli.main import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments, *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


RESUMABLE = ["--batch-sizes", "1,2,3", "--repeats", "3", "--requests", "6", "--max-new-tokens", "20", "--json"]


def run_sweep(model: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    code = "from knee.cli.main import main; main()"
    command = [sys.executable, "-c", code, "sweep", "--model", str(model), "--out", str(out), *RESUMABLE, *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("trials", [1, 4, 7])
def test_a_killed_sweep_is_resumed_and_ends_with_the_same_cells(model: Path, tmp_path: Path, trials: int) -> None:
    process = run_sweep(model, tmp_path)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        files = list(tmp_path.glob("*/requests.jsonl"))
        if files and files[0].read_bytes().count(b"\n") >= 6 * trials:
            break
        time.sleep(0.001)
    process.kill()
    process.communicate()
    [folder] = tmp_path.iterdir()
    other = run_sweep(model, tmp_path, "--resume", "latest", "--seed", "3")
    _, err = other.communicate(timeout=60)
    assert other.returncode == 2
    assert "another command (seed" in err

    resumed = run_sweep(model, tmp_path, "--resume", folder.name)
    out, err = resumed.communicate(timeout=60)
    assert resumed.returncode == 0, err
    record = json.loads(out)
    assert (record["status"], record["path"]) == ("done", str(folder))
    assert [cell["cell"] for cell in record["metrics"]["cells"]] == [0, 1, 2]
    assert all(len(cell["repeats"]) == 3 for cell in record["metrics"]["cells"])
    rows = [json.loads(line) for line in (folder / "requests.jsonl").read_text().splitlines()]
    trial_rows = [(row["cell"], row["repeat"], row["request"]) for row in rows]
    assert sorted(trial_rows) == [(c, r, n) for c in range(3) for r in range(3) for n in range(6)]
    assert record["metrics"]["same_tokens"]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_sweep_says_what_it_keeps(model: Path, tmp_path: Path, how: signal.Signals) -> None:
    process = sweep_process(model, tmp_path)
    deadline = time.monotonic() + 30
    while not list(tmp_path.glob("*/steps.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1.5)  # past the look around and the warm-up, into the trial
    process.send_signal(how)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert out == ""
    [folder] = tmp_path.iterdir()
    assert "interrupted; what was measured is kept in" in err
    assert "Traceback" not in err
    assert json.loads((folder / "record.json").read_text())["status"] == "interrupted"
    rows = [json.loads(line) for line in (folder / "requests.jsonl").read_text().splitlines()]
    assert any(row["finish_reason"] == "length" for row in rows)


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

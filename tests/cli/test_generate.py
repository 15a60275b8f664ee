"""`knee generate` streams text to stdout and nothing else, and text cannot do anything to a terminal."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from knee import LLM, SamplingParams, machine
from knee.cli.generate import command, harmless
from knee.errors import KneeError, RequestError, UserError


def call(model: Path, *arguments: str) -> Result:
    return CliRunner().invoke(
        command, ["--model", str(model), "--device", "reference", *arguments], catch_exceptions=False
    )


def document(model: Path, *arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(call(model, *arguments, "--json").stdout)
    return found


def test_the_document_has_the_contract_s_keys(model: Path) -> None:
    found = document(model, "Hello", "--max-new-tokens", "5", "--ignore-eos")
    assert found.keys() >= {"prompt_token_ids", "token_ids", "text", "finish_reason", "metrics"}
    assert len(found["prompt_token_ids"]) == 5
    assert len(found["token_ids"]) == 5
    assert found["finish_reason"] == "length"
    assert found["metrics"]["output_tokens"] == 5


def test_the_tokens_are_those_of_the_library(model: Path) -> None:
    [request] = LLM.load(str(model), device="reference").generate(["Hello"], SamplingParams(max_new_tokens=40))
    found = document(model, "Hello", "--max-new-tokens", "40")
    assert (found["token_ids"], found["text"]) == (request.output, request.text)


def test_the_stream_is_the_text_made_harmless(model: Path) -> None:
    arguments = ("Hello", "--max-new-tokens", "200", "--ignore-eos", "--temperature", "1.5")
    result = call(model, *arguments)
    assert result.stdout == harmless(document(model, *arguments)["text"]) + "\n"
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", result.stdout)


def test_numbers_go_to_stderr(model: Path) -> None:
    assert "tokens/s" in call(model, "Hello", "--max-new-tokens", "5", "--ignore-eos").stderr
    assert "预填充" in call(model, "Hello", "--max-new-tokens", "5", "--ignore-eos", "--lang", "zh").stderr


def test_the_model_that_ran_is_named_with_its_type(model: Path) -> None:
    assert "tiny @ float32, reference" in call(model, "Hello", "--max-new-tokens", "5").stderr
    found = document(model, "Hello", "--max-new-tokens", "5")["model"]
    assert found == {"name": "tiny", "dtype": "float32", "dtype_reason": None, "device": "reference"}


def test_more_threads_than_cores_are_warned_of_once(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "usable_cores", lambda: 1)
    short = ("Hello", "--max-new-tokens", "2", "--threads")
    assert call(model, *short, "2").stderr.count("2 threads share 1 usable cores") == 1
    assert "share" not in call(model, *short, "1").stderr


def test_without_a_cache_the_tokens_are_the_same(model: Path) -> None:
    on, off = (document(model, "Hello", "--ignore-eos", "--kv-cache", how) for how in ("on", "off"))
    assert on["token_ids"] == off["token_ids"]


def test_ids_need_no_tokenizer(mute_model: Path) -> None:
    found = document(mute_model, "--prompt-ids", "1, 2,3", "--max-new-tokens", "3", "--ignore-eos")
    assert found["prompt_token_ids"] == [1, 2, 3]
    assert found["text"] is None
    with pytest.raises(UserError, match="--prompt-ids"):
        call(mute_model, "Hello")


def test_a_chat_goes_through_the_template(model: Path) -> None:
    tokenizer = LLM.load(str(model), device="reference").tokenizer
    assert tokenizer is not None
    plain = document(model, "Hi", "--chat", "--max-new-tokens", "2")["prompt_token_ids"]
    assert tokenizer.decode(plain, skip_special_tokens=False) == "<|user|>user: Hi<|assistant|>"
    system = document(model, "Hi", "--chat", "--system", "Be kind", "--max-new-tokens", "2")["prompt_token_ids"]
    text = "<|user|>system: Be kind<|user|>user: Hi<|assistant|>"
    assert tokenizer.decode(system, skip_special_tokens=False) == text


def test_logprobs_come_for_every_token(model: Path) -> None:
    rows = document(model, "Hello", "--max-new-tokens", "4", "--ignore-eos", "--logprobs", "3")["logprobs"]
    assert [len(row["top"]) for row in rows] == [3] * 4
    assert all(row["logprob"] == row["top"][0]["logprob"] <= 0 for row in rows)
    shown = call(model, "Hello", "--max-new-tokens", "4", "--ignore-eos", "--logprobs", "3")
    assert "logprob" in shown.stderr
    assert "logprob" not in shown.stdout


def test_a_stop_string_ends_the_text_before_it(model: Path) -> None:
    whole = document(model, "Hello", "--max-new-tokens", "60", "--ignore-eos")["text"]
    stop = whole[10:12]
    found = document(model, "Hello", "--max-new-tokens", "60", "--ignore-eos", "--stop", stop)
    assert found["finish_reason"] == "stop"
    assert found["text"] == whole[: whole.index(stop)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no prompt is given"),
        (["a", "--prompt-ids", "1"], "2 prompts are given"),
        ([""], "empty"),
        (["a", "--system", "b"], "add --chat"),
        (["--chat", "--prompt-ids", "1"], "--chat needs a text"),
        (["--prompt-ids", "999"], "not in the vocabulary"),
        (["--prompt-ids", "-1"], "not in the vocabulary"),
        (["a", "--max-new-tokens", "0"], "max_new_tokens is 0"),
        (["a", "--max-new-tokens", "512"], "513"),
        (["a", "--temperature", "-1"], "temperature is -1"),
        (["a", "--top-p", "0"], "top_p is 0"),
        (["a", "--stop", ""], "stop string is empty"),
        (["a", "--device", "abacus"], "abacus"),
        (["a", "--dtype", "float3"], "float3"),
    ],
)
def test_bad_input_is_refused(model: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        call(model, *arguments)


def test_what_options_alone_decide_is_refused_before_a_model_is_looked_for() -> None:
    with pytest.raises(RequestError, match="max_new_tokens"):
        call(Path("/nowhere"), "a", "--max-new-tokens", "0")
    with pytest.raises(KneeError, match="/nowhere"):
        call(Path("/nowhere"), "a")


def test_harmless_text_keeps_lines_and_tabs() -> None:
    assert harmless("a\n\tb\x1b[31m\r\u202ec é 中") == "a\n\tb\\x1b[31m\\r\\u202ec é 中"


def test_nothing_is_imported_between_tokens(model: Path) -> None:
    code = f"""
import sys
from knee.cli import generate
from knee.engine.engine import Engine
step = Engine.step
before = set()
def watched(engine):
    before.update(sys.modules)
    return step(engine)
Engine.step = watched
generate._summary = lambda *_: print("imported", sorted(set(sys.modules) - before), file=sys.stderr)
arguments = ["Hello", "--model", {str(model)!r}, "--max-new-tokens", "1", "--ignore-eos"]
generate.command(arguments)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "imported []" in done.stderr


def test_overlap_is_refused_where_the_device_cannot(model: Path) -> None:
    with pytest.raises(UserError, match="leave --overlap out"):
        call(model, "Hello", "--overlap", "on")
    assert call(model, "Hello", "--max-new-tokens", "2", "--overlap", "off").exit_code == 0

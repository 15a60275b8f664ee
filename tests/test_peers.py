"""The side-by-side benchmark without its engines: options, turns, ratios and tables."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from benchmarks.peers import (
    Measured,
    Pass,
    assignments,
    faster_by,
    header,
    markdown,
    meant_for,
    measure,
    milliseconds,
    parse,
    rows,
    tokens_per_second,
)


@dataclass
class FakePeer:
    """Takes a fixed time for a group and makes `made` tokens (default: as many as it is asked for)."""

    name: str
    seconds: float
    log: list[str] = field(default_factory=list)
    made: int | None = None

    def run(self, prompts: list[list[int]], batch_size: int, new_tokens: int) -> Pass:
        self.log.append(self.name)
        groups = -(-len(prompts) // batch_size)
        count = new_tokens if self.made is None else self.made
        return Pass([self.seconds] * groups, [[7] * count for _ in prompts])


def test_what_is_said_of_an_engine_goes_for_its_rows_unless_a_row_has_its_own() -> None:
    given = assignments(["llama.cpp=/a/python", "llama.cpp-q8_0=/b/python=3"])
    assert meant_for("llama.cpp-q4_1", given, "here") == "/a/python"
    assert meant_for("llama.cpp-q8_0", given, "here") == "/b/python=3"
    assert meant_for("openvino-int8", given, "here") == "here"


def test_options() -> None:
    options = parse(["--engines", "knee-int8,openvino-int8", "--batch-sizes", "1,4", "--model-of", "openvino-int8=ir"])
    assert options.engines == ["knee-int8", "openvino-int8"]
    assert options.batch_sizes == [1, 4]
    assert options.model_of == {"openvino-int8": "ir"}
    assert options.threads >= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engines", "knee,vllm"], "'vllm' names no engine"),
        (["--engines", "knee,knee"], "named twice"),
        (["--python", "llama.cpp"], "give NAME=PATH"),
        (["--python", "lama.cpp=/a/python"], "'lama.cpp' names no engine"),
        (["--batch-sizes", "1,x"], "invalid literal"),
    ],
)
def test_wrong_options(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(arguments)
    assert message in capsys.readouterr().err


def test_peers_take_turns_after_a_warm_up() -> None:
    log: list[str] = []
    peers = [FakePeer("knee", 0.5, log), FakePeer("openvino", 1.0, log)]
    measured = measure(peers, [[1]] * 4, 2, 3, 2, tokens_per_second)
    assert log == ["knee", "openvino", "knee", "openvino", "openvino", "knee"]
    assert [each.values for each in measured] == [[12.0, 12.0], [6.0, 6.0]]
    assert measure(peers, [[1]] * 4, 1, 1, 1, milliseconds)[0].values == [500.0]


def test_a_peer_that_stops_early_is_no_measurement() -> None:
    with pytest.raises(RuntimeError, match="openvino did not make 3 tokens"):
        measure([FakePeer("openvino", 1.0, made=2)], [[1]], 1, 3, 1, tokens_per_second)


def test_ratios_pair_the_values_of_a_round() -> None:
    ours, theirs = Measured("knee", [10.0, 30.0, 20.0], []), Measured("openvino", [5.0, 10.0, 20.0], [])
    assert faster_by(ours, theirs, smaller_wins=False) == 2.0
    assert faster_by(ours, theirs, smaller_wins=True) == 0.5


def test_rows_have_a_ratio_for_every_row_of_knee() -> None:
    measured = [
        Measured("knee-int8", [40.0, 44.0], [[1], [2]]),
        Measured("llama.cpp-q8_0", [20.0, 22.0], [[1], [3]]),
        Measured("knee-float32", [10.0, 11.0], [[1], [2]]),
    ]
    names = [each.name for each in measured]
    columns = ["engine", "tokens/s", "lowest", "highest", "knee-int8 faster by", "knee-float32 faster by"]
    assert header(names, "tokens/s") == [*columns, "same as knee-int8"]
    assert rows(measured) == [
        ["knee-int8", "42.0", "40.0", "44.0", "", "0.25x", "2/2"],
        ["llama.cpp-q8_0", "21.0", "20.0", "22.0", "2.00x", "0.50x", "1/2"],
        ["knee-float32", "10.5", "10.0", "11.0", "4.00x", "", "2/2"],
    ]
    assert rows(measured[1:2])[0][4] == ""  # without knee the first row is the measure
    assert rows(measured, smaller_wins=True)[1][4] == "0.50x"


def test_markdown() -> None:
    assert markdown([["engine", "ms"], ["knee", "1.5"]]) == "| engine | ms  |\n| ------ | --- |\n| knee   | 1.5 |"

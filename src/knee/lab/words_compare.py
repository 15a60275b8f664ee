"""The words of `knee compare` and `knee reproduce`. Key -> (English, Chinese); see `messages.py`."""

from __future__ import annotations

from collections.abc import Mapping

WORDS: Mapping[str, tuple[str, str]] = {
    "compare.title": ("Two runs compared: B against A", "两次实验对比：B 相对于 A"),
    "compare.run": ("{run} · {model} @ {dtype}, {device}", "{run} · {model} @ {dtype}，{device}"),
    # Whether both did the same work.
    "compare.tokens_same": ("Tokens: the same in both runs.", "Token：两次实验完全一致。"),
    "compare.tokens_differ": ("Tokens: they differ.", "Token：不一致。"),
    "compare.tokens_differ_in": ("Tokens: they differ, in {cells}.", "Token：不一致，出现在 {cells}。"),
    "compare.tokens_unknown": (
        "Tokens: unknown, the runs have nothing in common to compare them by.",
        "Token：未知，两次实验没有可供比对的共同部分。",
    ),
    "compare.unequal": (
        "This is not the same work: {keys} differ. What follows was compared all the same; a change in it need not be "
        "one of speed.",
        "两次实验做的不是同样的工作：{keys} 不同。以下仍按要求做了对比，但其中的变化未必是速度的变化。",
    ),
    "compare.only_a": ("Only in A: {cells}.", "只有 A 测了：{cells}。"),
    "compare.only_b": ("Only in B: {cells}.", "只有 B 测了：{cells}。"),
    # The table.
    "compare.column.metric": ("metric", "指标"),
    "compare.column.a": ("A", "A"),
    "compare.column.b": ("B", "B"),
    "compare.column.change": ("change", "变化"),
    "compare.column.within": ("in A's\ninterval", "在 A 的\n区间内"),
    "compare.column.verdict": ("B is", "判定"),
    "compare.better": ("better", "更好"),
    "compare.worse": ("worse", "更差"),
    "compare.cannot_tell": ("cannot tell", "无法判断"),
    "compare.too_few": ("cannot tell: n = {n}", "无法判断：n = {n}"),
    "compare.kvcache_cell": (
        "prompt of {tokens} tokens, KV cache {switch}",
        "提示词 {tokens} 个 token，KV 缓存{switch}",
    ),
    "compare.folded": (
        "In {count} cells nothing can be told apart, with changes from {low} to {high}: {cells}.",
        "有 {count} 组看不出任何差别，变化在 {low} 到 {high} 之间：{cells}。",
    ),
    "compare.about": (
        "A and B are medians. The change is that of the geometric means, with an interval that is wide enough for all "
        "rows together: of two runs that differ in luck alone, at least 19 comparisons in 20 call nothing better or "
        "worse.",
        "A、B 两列为中位数。变化按几何平均计算，其区间已按全部行一并放宽：若两次实验只有偶然差别，"
        "20 次对比中至少有 19 次不会把任何指标判为更好或更差。",
    ),
    "compare.one_process": (
        "A and B are medians of one process each. Its steps share the luck of that process, such as "
        "where its memory lay, "
        "and the intervals do not contain it: better or worse is said only where the whole interval is beyond 5 %.",
        "A、B 两列各为一个进程内的中位数。同一进程内的各步共享该进程的运气（例如内存落在何处），"
        "区间并不包含这部分波动：只有整个区间都超出 5 % 时才判为更好或更差。",
    ),
    "compare.metric.output_throughput": ("tokens/s", "tokens/s"),
    "compare.metric.request_throughput": ("requests/s", "请求/s"),
    "compare.metric.e2el_ms": ("latency ms", "延迟 ms"),
    "compare.metric.ttft_ms": ("TTFT ms", "TTFT ms"),
    "compare.metric.tpot_ms": ("TPOT ms", "TPOT ms"),
    "compare.metric.queue_ms": ("queue ms", "排队 ms"),
    "compare.metric.service_ms": ("service ms", "服务 ms"),
    "compare.metric.power": ("power", "功效"),
    "compare.metric.goodput": ("within limits/s", "达标请求/s"),
    "compare.metric.prefill_ms": ("prefill, warm, ms", "预填充（热）ms"),
    "compare.metric.prefill_cold_ms": ("prefill, cold, ms", "预填充（冷）ms"),
    "compare.metric.decode_step_ms": ("decode step ms", "解码步 ms"),
    "compare.metric.decode_step_off_ms": ("no cache, step ms", "无缓存解码步 ms"),
    # What else differs, and the end.
    "compare.differences": ("What else differs", "其他不同之处"),
    "compare.no_differences": ("Nothing else differs.", "其他方面没有不同。"),
    "compare.warned_a": ("Only A was warned: {message}", "只有 A 有此警告：{message}"),
    "compare.warned_b": ("Only B was warned: {message}", "只有 B 有此警告：{message}"),
    "compare.summary": (
        "B against A: {better} better, {worse} worse, {rest} cannot be told apart.",
        "B 相对于 A：{better} 项更好，{worse} 项更差，{rest} 项无法区分。",
    ),
    "compare.nothing": (
        "B against A: the runs have no metric in common.",
        "B 相对于 A：两次实验没有共同的指标。",
    ),
    "reproduce.title": ("Run again: A is the run, B its repetition", "重新运行：A 为原实验，B 为重做"),
    "reproduce.tokens_same": ("Tokens: identical.", "Token：完全一致。"),
    "reproduce.tokens_differ": (
        "Tokens: NOT identical, although the model's files are the same. The run was not reproduced.",
        "Token：不一致，而模型文件相同。未能重现该实验。",
    ),
    "reproduce.tokens_differ_model": (
        "Tokens: not identical, and the model's files are other ones.",
        "Token：不一致，模型文件也不同。",
    ),
    "reproduce.tokens_differ_work": (
        "Tokens: not identical, and the work was another one (see what is not equal below).",
        "Token：不一致，所做的工作也不同（见下方不相等之处）。",
    ),
    "reproduce.tokens_unknown": (
        "Tokens: unknown, there are none to compare.",
        "Token：未知，没有可供比对的 token。",
    ),
    "reproduce.where": ("They differ in {cells}.", "不一致之处：{cells}。"),
    "reproduce.within": (
        "{within} of {of} medians lie in the interval that the run has for them; of an equal run five in six would.",
        "{of} 个中位数中有 {within} 个落在原实验的区间内；若两次实验毫无差别，约六分之五会落在其中。",
    ),
    "reproduce.no_intervals": (
        "The run has no intervals to lie in (one process, or too few repeats): what can be told stands in the table.",
        "原实验没有可供落入的区间（只有一个进程，或重复太少）：能判断的都在表中。",
    ),
    "reproduce.environment": ("What changed in the environment", "环境的变化"),
    "reproduce.no_changes": ("Nothing changed in the environment.", "环境没有变化。"),
}

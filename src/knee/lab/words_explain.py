"""The sentences of the explanation. Key -> (English, Chinese); see `messages.py`."""

from __future__ import annotations

from collections.abc import Mapping

WORDS: Mapping[str, tuple[str, str]] = {
    # From one batch size to the next.
    "finding.step_memory": (
        "From batch {a} to {b} a decode step went from {before} to {after} ms ({change}; the roofline expects "
        "{expected}) for {times} times the tokens: both read the weights once.",
        "批大小从 {a} 增到 {b}（token 数为 {times} 倍），解码步从 {before} ms 变为 {after} ms（{change}，"
        "roofline 预期 {expected}）：两者都只需读一遍权重。",
    ),
    "finding.step_crossing": (
        "From batch {a} to {b} a decode step went from {before} to {after} ms ({change}; the roofline expects "
        "{expected}) for {times} times the tokens: by the roofline memory bounds the first and arithmetic the second.",
        "批大小从 {a} 增到 {b}（token 数为 {times} 倍），解码步从 {before} ms 变为 {after} ms（{change}，"
        "roofline 预期 {expected}）：按 roofline，前者受限于内存读取，后者受限于计算。",
    ),
    "finding.step_arithmetic": (
        "From batch {a} to {b} a decode step went from {before} to {after} ms ({change}; the roofline expects "
        "{expected}) for {times} times the tokens: by the roofline arithmetic bounds both, and it grows with the "
        "tokens.",
        "批大小从 {a} 增到 {b}（token 数为 {times} 倍），解码步从 {before} ms 变为 {after} ms（{change}，"
        "roofline 预期 {expected}）：按 roofline，两者都受限于计算，而计算量随 token 数增长。",
    ),
    "finding.step_contradicts": (
        "From batch {a} to {b} the roofline expects a decode step to change by {expected}, measured were {change} "
        "({before} to {after} ms) for {times} times the tokens: what a step takes above its floor went from {over_a} "
        "to {over_b} ms.",
        "批大小从 {a} 增到 {b}（token 数为 {times} 倍）：roofline 预期解码步耗时变化 {expected}，"
        "实测为 {change}（{before} ms 变为 {after} ms）；超出理论下限的部分从 {over_a} ms 变为 {over_b} ms。",
    ),
    "finding.step_measured": (
        "From batch {a} to {b} a decode step went from {before} to {after} ms ({change}) for {times} times the tokens.",
        "批大小从 {a} 增到 {b}（token 数为 {times} 倍），解码步从 {before} ms 变为 {after} ms（{change}）。",
    ),
    # The roofline's knee and the one that was found.
    "finding.roofline_agrees": (
        "By the roofline, arithmetic overtakes the read of the weights at batch {batch}, and the knee was found at "
        "batch {found}: expect little beyond.",
        "按 roofline，批大小达到 {batch} 时计算耗时超过读取权重；实测拐点在批大小 {found}：再增大收益有限。",
    ),
    "finding.roofline_open": (
        "By the roofline, arithmetic overtakes the read of the weights only at batch {batch}; the knee was found at "
        "batch {found}, and nothing larger was measured: a larger batch may still gain.",
        "按 roofline，批大小达到 {batch} 时计算耗时才超过读取权重；实测拐点在批大小 {found}，更大的批没有测："
        "继续增大可能仍有收益。",
    ),
    "finding.roofline_later": (
        "By the roofline, arithmetic overtakes the read of the weights only at batch {batch}, but the knee was found "
        "at batch {found}: what stops the gain there is neither of the two roofs.",
        "按 roofline，批大小达到 {batch} 时计算耗时才超过读取权重，但实测拐点在批大小 {found}："
        "让收益止步于此的不是这两个上限。",
    ),
    "finding.roofline_earlier": (
        "By the roofline, arithmetic overtakes the read of the weights already at batch {batch}, but the knee was "
        "found at batch {found}: what is gained in between is not the shared read of the weights.",
        "按 roofline，批大小达到 {batch} 时计算耗时就已超过读取权重，但实测拐点在批大小 {found}："
        "两者之间的收益不是来自共享权重读取。",
    ),
    "finding.roofline_anywhere": (
        "By the roofline, arithmetic overtakes the read of the weights at batch {batch}; the knee "
        "can be at any of batch "
        "{found}: these repeats cannot tell whether the two agree.",
        "按 roofline，批大小达到 {batch} 时计算耗时超过读取权重；实测拐点可能在批大小 {found} 中的任何一处："
        "凭这些重复无法判断两者是否一致。",
    ),
    "finding.roofline_alone": (
        "By the roofline, arithmetic overtakes the read of the weights at batch {batch}.",
        "按 roofline，批大小达到 {batch} 时计算耗时超过读取权重。",
    ),
    "finding.roofline_never": (
        "By the roofline, arithmetic never overtakes the reads at {context} tokens of context a request: each row's "
        "keys and values take longer to read than its arithmetic takes.",
        "按 roofline，每个请求上下文为 {context} 个 token 时，计算耗时永远不会超过读取："
        "每一行读取自身键值所需的时间都长于其计算时间。",
    ),
    # How near decode steps come to their floor.
    "finding.near_memory": (
        "A decode step of {cell} takes {ms} ms; its floor, the read of weights and KV cache, is {floor} ms: on the "
        "device it reaches {near} of what the memory allows.",
        "{cell} 的解码步耗时 {ms} ms，其下限（读取权重与 KV 缓存）为 {floor} ms：设备上达到内存上限的 {near}。",
    ),
    "finding.near_arithmetic": (
        "A decode step of {cell} takes {ms} ms; its floor, the arithmetic, is {floor} ms: on the device it reaches "
        "{near} of what the processor's arithmetic allows.",
        "{cell} 的解码步耗时 {ms} ms，其下限（计算）为 {floor} ms：设备上达到处理器算力上限的 {near}。",
    ),
    "finding.near_beyond": (
        "A decode step of {cell} takes {ms} ms, and its floor would be {floor} ms, so it reaches {near} of the limit: "
        "the limits were measured in a worse moment than the steps.",
        "{cell} 的解码步耗时 {ms} ms，而算出的下限为 {floor} ms，达到上限的 {near}：测量上限时的机器状态比运行时差。",
    ),
    # Where the time went.
    "finding.time": (
        "Where the time of {cell} went: {floor} the floor of its decode steps, {over} what these took beyond it, "
        "{prefill} steps with a prefill, {host} the engine's own work, {held_back} held back while requests waited, "
        "{idle} idle.",
        "{cell} 的时间去向：解码步的理论下限占 {floor}，解码步超出下限的部分占 {over}，含预填充的步占 {prefill}，"
        "引擎自身开销占 {host}，有请求在等却未运行占 {held_back}，空闲占 {idle}。",
    ),
    "finding.time_measured": (
        "Where the time of {cell} went: {decode} decode steps, {prefill} steps with a prefill, {host} the engine's "
        "own work, {held_back} held back while requests waited, {idle} idle.",
        "{cell} 的时间去向：解码步占 {decode}，含预填充的步占 {prefill}，引擎自身开销占 {host}，"
        "有请求在等却未运行占 {held_back}，空闲占 {idle}。",
    ),
    "finding.window_idle": (
        "The wait window could not matter at batch {sizes}: every batch was full, or the last, when it started.",
        "批大小为 {sizes} 时等待窗口不可能有影响：每个批次开始时都已满，或是最后一批。",
    ),
    "finding.empty_slots": (
        "While steps ran, {empty} of the slots of {cell} were empty: a decode step had {rows} rows on average.",
        "{cell} 运行期间有 {empty} 的槽位空着：解码步平均只有 {rows} 行。",
    ),
    "finding.interference": (
        "Prompts in the same step made a token of {cell} come {added} ms later on average; a decode step of its own "
        "takes {ms} ms.",
        "同一步中的预填充使 {cell} 的每个 token 平均晚 {added} ms；单独的解码步耗时 {ms} ms。",
    ),
}

"""What experiment logs usually claim, and what became of it here. Key -> (English, Chinese); see `messages.py`."""

from __future__ import annotations

from collections.abc import Mapping

WORDS: Mapping[str, tuple[str, str]] = {
    # `knee claims`.
    "claims.title": ("What logs usually conclude, tested on this run", "实验日志常见的结论，在本次实验上的检验"),
    "claims.supported": ("supported", "成立"),
    "claims.refuted": ("refuted", "不成立"),
    "claims.cannot_tell": ("cannot tell", "无法判断"),
    "claims.not_measured": ("not measured", "未测量"),
    "claims.about": (
        "Changes have 95 % intervals in brackets, where there are enough repeats for one.",
        "方括号内为变化的 95 % 置信区间（重复次数足够时给出）。",
    ),
    "claims.none": (
        "There are no metrics, and so nothing to test a claim on: the run did not get that far.",
        "没有指标，无从检验结论：实验在得出指标之前就结束了。",
    ),
    # Where nothing was measured.
    "claim.not_measured": (
        "This run cannot say: `{command}` measures it.",
        "本次实验无法回答：可用 `{command}` 测量。",
    ),
    "claim.no_values": (
        "This record keeps no values of single repeats that could be compared: `{command}` measures them.",
        "该记录没有保存可供比较的各次重复的数值：可用 `{command}` 重新测量。",
    ),
    "claim.no_same_shape": (
        "No later step of a warm-up had the shape of its first one, and other shapes are other work: `{command}` "
        "measures it.",
        "预热中没有与首步形状相同的后续步，而形状不同的步不是同样的工作：可用 `{command}` 测量。",
    ),
    # What is counted.
    "claim.latency_is_service": ("The latency of a request is its service time.", "请求的延迟就是服务时间。"),
    "claim.latency_is_service.cell": (
        "In {cell} a request took {latency} ms from its arrival to the last token, of which {service} ms were "
        "service: {change} against the service time (repeats: {n}).",
        "{cell} 中，请求从到达到末 token 用时 {latency} ms，其中服务时间 {service} ms："
        "相对服务时间 {change}（{n} 次重复）。",
    ),
    "claim.padding_free": (
        "All cells give the same tokens: batches are not padded.",
        "各组生成的 token 完全一致：批处理没有填充。",
    ),
    "claim.padding_free.same": (
        "The {requests} requests got the same tokens in all {cells} cells, {tokens} tokens a trial.",
        "{requests} 个请求在全部 {cells} 组中得到的 token 完全相同，每次试验共 {tokens} 个。",
    ),
    "claim.padding_free.differ": (
        "Some of the {requests} requests got other tokens in another of the {cells} cells: the cells did not do the "
        "same work.",
        "{requests} 个请求中，有的在 {cells} 组之间得到了不同的 token：各组做的不是同样的工作。",
    ),
    # Batch sizes.
    "claim.batching_trades_latency": ("Larger batches buy throughput with latency.", "更大的批以延迟换取吞吐。"),
    "claim.batching_trades_latency_at": (
        "With policy {policy}, larger batches buy throughput with latency.",
        "在 {policy} 策略下，更大的批以延迟换取吞吐。",
    ),
    "claim.batching_trades_latency.cells": (
        "{b} against {a}: throughput {throughput}, latency from arrival {latency}, service time alone {service} "
        "(pairs of repeats: {n}).",
        "{b} 相比 {a}：吞吐 {throughput}，从到达算起的延迟 {latency}，仅看服务时间 {service}（{n} 对重复）。",
    ),
    "claim.throughput_grows_with_batch": ("Throughput grows with the batch size.", "吞吐随批大小增长。"),
    "claim.throughput_grows_with_batch_at": (
        "With policy {policy}, throughput grows with the batch size.",
        "在 {policy} 策略下，吞吐随批大小增长。",
    ),
    "claim.throughput_grows_with_batch.supported": (
        "From batch {a} to {b} throughput changed by {change} (pairs of repeats: {n}), and every step up gained: "
        "{steps}.",
        "批大小从 {a} 到 {b}，吞吐变化 {change}（{n} 对重复），且每次增大都有收益：{steps}。",
    ),
    "claim.throughput_grows_with_batch.refuted": (
        "From batch {a} to {b} throughput changed by {change} (pairs of repeats: {n}): not every step up gained, "
        "{steps}.",
        "批大小从 {a} 到 {b}，吞吐变化 {change}（{n} 对重复）：并非每次增大都有收益，{steps}。",
    ),
    "claim.throughput_grows_with_batch.cannot_tell": (
        "From batch {a} to {b} throughput changed by {change} (pairs of repeats: {n}), which cannot be told from no "
        "change; step by step: {steps}.",
        "批大小从 {a} 到 {b}，吞吐变化 {change}（{n} 对重复），与没有变化无法区分；逐级变化：{steps}。",
    ),
    "claim.batch8_faster_than_4": ("Batch 8 has a lower latency than batch 4.", "批大小 8 的延迟低于批大小 4。"),
    "claim.batch8_faster_than_4_at": (
        "With policy {policy}, batch 8 has a lower latency than batch 4.",
        "在 {policy} 策略下，批大小 8 的延迟低于批大小 4。",
    ),
    "claim.batch8_faster_than_4.same": (
        "{b} against {a}: latency from arrival {latency}, service time {service} (pairs of repeats: {n}).",
        "{b} 相比 {a}：从到达算起的延迟 {latency}，服务时间 {service}（{n} 对重复）。",
    ),
    "claim.batch8_faster_than_4.opposite": (
        "{b} against {a}: latency from arrival {latency} (pairs of repeats: {n}); the service time, which leaves out "
        "the queue, says the opposite: {service}.",
        "{b} 相比 {a}：从到达算起的延迟 {latency}（{n} 对重复）；不含排队的服务时间则相反：{service}。",
    ),
    # Wait windows.
    "claim.window_helps": ("A wait window lowers the latency.", "等待窗口能降低延迟。"),
    "claim.window_helps_at": (
        "At batch {size}, a wait window of {window} ms instead of {without} ms lowers the latency.",
        "批大小为 {size} 时，等待窗口从 {without} ms 改为 {window} ms 能降低延迟。",
    ),
    "claim.window_hurts": ("A wait window raises the latency.", "等待窗口会增加延迟。"),
    "claim.window_hurts_at": (
        "At batch {size}, a wait window of {window} ms instead of {without} ms raises the latency.",
        "批大小为 {size} 时，等待窗口从 {without} ms 改为 {window} ms 会增加延迟。",
    ),
    "claim.window_cells": (
        "{b} against {a}: latency from arrival {latency}, throughput {throughput} (pairs of repeats: {n}).",
        "{b} 相比 {a}：从到达算起的延迟 {latency}，吞吐 {throughput}（{n} 对重复）。",
    ),
    "claim.window_idle": (
        "It could not matter: at batch {size}, with {window} ms as with {without} ms, every batch was full, or the "
        "last, when it started.",
        "不可能有影响：批大小为 {size} 时，无论窗口为 {window} ms 还是 {without} ms，每个批次开始时都已满，"
        "或是最后一批。",
    ),
    # Prefill and decode.
    "claim.prefill_costs_more": (
        "A prefill token costs more than a decode step.",
        "预填充一个 token 比一个解码步更费时。",
    ),
    "claim.prefill_costs_more.baseline": (
        "Warm, a prompt token took {token} ms and a decode step {step} ms: {change}. The first, cold prefill took "
        "{cold} ms a token, which is another number. The interval covers the noise between the steps of one process, "
        "not the luck of that process.",
        "预热后，每个提示词 token {token} ms，每个解码步 {step} ms：{change}。首次（冷）预填充为每 token {cold} ms，"
        "那是另一个数字。区间只反映同一进程内各步之间的噪声，不反映进程之间的差异。",
    ),
    "claim.prefill_costs_more.solo": (
        "One request alone on a warm engine took {token} ms a prompt token and {step} ms a decode step: {change} "
        "(trials: {n}).",
        "引擎预热后单独运行一个请求：每个提示词 token {token} ms，每个解码步 {step} ms：{change}（{n} 次试验）。",
    ),
    "claim.prefill_costs_more.steps": (
        "Warm steps took {token} ms a prompt token, and {step} ms for a decode step of one row: {change} (trials: "
        "{n}).",
        "预热后的步：每个提示词 token {token} ms，单行解码步 {step} ms：{change}（{n} 次试验）。",
    ),
    "claim.cold_is_steady": (
        "The first prefill after loading shows what a prefill costs.",
        "加载后的首次预填充反映了预填充的耗时。",
    ),
    "claim.cold_is_steady.baseline": (
        "The first prefill took {cold} ms, {n} warm ones {warm} ms (median): {change}. The interval covers the noise "
        "between the prefills of one process, not the luck of that process.",
        "首次预填充 {cold} ms，之后 {n} 次预热后的中位数为 {warm} ms：{change}。"
        "区间只反映同一进程内各次预填充之间的噪声，不反映进程之间的差异。",
    ),
    "claim.cold_is_steady.sweep": (
        "The first step of the warm-up took {cold} ms, later ones of the same shape {warm} ms: {change} (trials: {n}).",
        "预热的首步耗时 {cold} ms，形状相同的后续步 {warm} ms：{change}（{n} 次试验）。",
    ),
    # The KV cache.
    "claim.decode_independent_of_kv": (
        "A decode step takes as long at any length of the KV cache.",
        "解码步的耗时与 KV 缓存长度无关。",
    ),
    "claim.decode_independent_of_kv.single": (
        "Between {low} and {high} tokens of context a decode step changed by {change}, over {steps} steps. The "
        "interval covers the noise between the steps of one process, not the luck of that process.",
        "上下文从 {low} 到 {high} 个 token，解码步耗时变化 {change}（共 {steps} 步）。"
        "区间只反映同一进程内各步之间的噪声，不反映进程之间的差异。",
    ),
    "claim.decode_independent_of_kv.sweep": (
        "Between {low} and {high} tokens of context a decode step of {rows} rows changed by {change} (trials: {n}); "
        "`knee kvcache` measures longer contexts.",
        "上下文从 {low} 到 {high} 个 token，{rows} 行的解码步耗时变化 {change}（{n} 次试验）；"
        "更长的上下文可用 `knee kvcache` 测量。",
    ),
    "claim.kv_cache_pays_from": ("The KV cache makes decode steps faster.", "KV 缓存使解码步更快。"),
    "claim.kv_cache_pays_from_at": (
        "The KV cache makes decode steps faster from a context of {tokens} tokens on.",
        "上下文达到 {tokens} 个 token 起，KV 缓存使解码步更快。",
    ),
    "claim.kv_cache_pays_from.pairs": (
        "From {near} tokens of context on a decode step took {on} ms with the cache and {off} ms without: {change}; "
        "up to {far} tokens it took {far_on} against {far_off} ms. The interval covers the noise between the steps of "
        "one process, not the luck of that process.",
        "上下文从 {near} 个 token 起，解码步开启缓存 {on} ms，关闭 {off} ms：{change}；"
        "到 {far} 个 token 时为 {far_on} ms 对 {far_off} ms。区间只反映同一进程内各步之间的噪声，"
        "不反映进程之间的差异。",
    ),
    # Elsewhere.
    "claim.gpu_gains_more": ("A GPU gains more from batching than a CPU.", "GPU 从批处理中获益比 CPU 更多。"),
    "claim.gpu_gains_more.cpu": (
        "This run was on device {device}: `knee sweep` on a machine with a GPU, and `knee compare` with this run, "
        "measure it.",
        "本次实验在设备 {device} 上运行：请在有 GPU 的机器上运行 `knee sweep`，再用 `knee compare` 与本次对比。",
    ),
    "claim.gpu_gains_more.gpu": (
        "This run was on device {device}: `knee sweep --device cpu`, and `knee compare` with this run, measure it.",
        "本次实验在设备 {device} 上运行：请运行 `knee sweep --device cpu`，再用 `knee compare` 与本次对比。",
    ),
}

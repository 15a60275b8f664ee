"""The sentences of the knee, the recommendations and the warnings. Key -> (English, Chinese); see `messages.py`."""

from __future__ import annotations

from collections.abc import Mapping

WORDS: Mapping[str, tuple[str, str]] = {
    # The knee. `power` is requests/s over seconds of latency.
    "answer.knee_clear_known": (
        "The knee is {cell}: its power, requests/s over latency, is {power}; the next, {second}, has {less}. By the "
        "roofline arithmetic overtakes the read of the weights at batch {batch}.",
        "拐点是 {cell}：其功效（请求/s ÷ 延迟）为 {power}；其次是 {second}，为 {less}。按屋顶线模型，"
        "批大小达到 {batch} 时计算开始超过读取权重的时间。",
    ),
    "answer.knee_tied_known": (
        "The knee is {cell}: its power, requests/s over latency, is {power}; it cannot be told from {tied}. By the "
        "roofline arithmetic overtakes the read of the weights at batch {batch}.",
        "拐点是 {cell}：其功效（请求/s ÷ 延迟）为 {power}；与 {tied} 无法区分。按屋顶线模型，"
        "批大小达到 {batch} 时计算开始超过读取权重的时间。",
    ),
    "answer.knee_too_few_known": (
        "The highest power, requests/s over latency, was {power}, with {cell}; {repeats} repeats are too few to tell "
        "settings apart. By the roofline arithmetic overtakes the read of the weights at batch {batch}.",
        "功效（请求/s ÷ 延迟）最高为 {power}，来自 {cell}；{repeats} 次重复太少，无法区分各设置。"
        "按屋顶线模型，批大小达到 {batch} 时计算开始超过读取权重的时间。",
    ),
    "answer.knee_clear_unknown": (
        "The knee is {cell}: its power, requests/s over latency, is {power}; the next one, {second}, has {less}.",
        "拐点是 {cell}：其功效（请求/s ÷ 延迟）为 {power}；其次是 {second}，为 {less}。",
    ),
    "answer.knee_tied_unknown": (
        "The knee is {cell}: its power, requests/s over latency, is {power}; it cannot be told from those of {tied}.",
        "拐点是 {cell}：其功效（请求/s ÷ 延迟）为 {power}；与这些设置无法区分：{tied}。",
    ),
    "answer.knee_too_few_unknown": (
        "The highest power, requests/s over latency, was {power}, with {cell}; {repeats} repeats are too few to tell "
        "one setting from another.",
        "功效（请求/s ÷ 延迟）最高为 {power}，来自 {cell}；{repeats} 次重复太少，无法区分不同设置。",
    ),
    "answer.knee_only": (
        "Only one setting was measured: a knee needs others beside it.",
        "只测量了一个设置：要找拐点还需要其他设置作对照。",
    ),
    # Recommendations.
    "answer.limits_chat": (
        "First token within {ttft} times, and each further one within {tpot} times, what one request alone takes here: "
        "{first} ms and {pace} ms.",
        "首 token 不超过本机单独一个请求耗时的 {ttft} 倍，之后每个 token 不超过 {tpot} 倍："
        "单独时分别为 {first} ms 和 {pace} ms。",
    ),
    "answer.limits_api": (
        "The whole answer within {times} times what one request alone takes here: {whole} ms for "
        "{prompt} tokens in and "
        "{tokens} out.",
        "整个回答不超过本机单独一个请求耗时的 {times} 倍：输入 {prompt} 个、输出 {tokens} 个 token 时为 {whole} ms。",
    ),
    "answer.limits_given": ("The limits given with --slo.", "由 --slo 给定的限制。"),
    "answer.goodput_clear_against": (
        "{cell}: {value} requests/s keep within the limits, {within} % of all. Against {base}: latency from arrival "
        "{latency}, first token {ttft}, tokens/s {throughput}.",
        "{cell}：{value} 个请求/s 在限制之内，占全部的 {within} %。相比 {base}：从到达算起的延迟 {latency}，"
        "首 token {ttft}，tokens/s {throughput}。",
    ),
    "answer.goodput_tied_against": (
        "{cell}, the simplest of those within 10 % of the best that cannot be told from it (tied: {tied}): {value} "
        "requests/s keep within "
        "the limits, {within} % of all. Against {base}: latency from arrival {latency}, first token {ttft}, tokens/s "
        "{throughput}.",
        "{cell}，是与最佳设置无法区分、且相差不到 10 % 的设置中最简单的一个（并列：{tied}）：{value} "
        "个请求/s 在限制之内，"
        "占全部的 {within} %。"
        "相比 {base}：从到达算起的延迟 {latency}，首 token {ttft}，tokens/s {throughput}。",
    ),
    "answer.goodput_clear_alone": (
        "{cell}: {value} requests/s keep within the limits, {within} % of all. Nothing smaller was measured to compare "
        "it with.",
        "{cell}：{value} 个请求/s 在限制之内，占全部的 {within} %。没有测量更小的设置可供比较。",
    ),
    "answer.goodput_tied_alone": (
        "{cell}, the simplest of those within 10 % of the best that cannot be told from it (tied: {tied}): {value} "
        "requests/s keep within "
        "the limits, {within} % of all. Nothing smaller was measured to compare it with.",
        "{cell}，是与最佳设置无法区分、且相差不到 10 % 的设置中最简单的一个（并列：{tied}）：{value} "
        "个请求/s 在限制之内，"
        "占全部的 {within} %。"
        "没有测量更小的设置可供比较。",
    ),
    "answer.throughput_clear_against": (
        "{cell}: {value} tokens/s. Against {base}: tokens/s {throughput}, latency from arrival {latency}, first token "
        "{ttft}.",
        "{cell}：{value} tokens/s。相比 {base}：tokens/s {throughput}，从到达算起的延迟 {latency}，首 token {ttft}。",
    ),
    "answer.throughput_tied_against": (
        "{cell}, the simplest of those within 10 % of the best that cannot be told from it (tied: "
        "{tied}): {value} tokens/s. Against "
        "{base}: tokens/s {throughput}, latency from arrival {latency}, first token {ttft}.",
        "{cell}，是与最佳设置无法区分、且相差不到 10 % 的设置中最简单的一个（并列：{tied}）：{value} tokens/s。"
        "相比 {base}：tokens/s {throughput}，从到达算起的延迟 {latency}，首 token {ttft}。",
    ),
    "answer.throughput_clear_alone": (
        "{cell}: {value} tokens/s. Nothing smaller was measured to compare it with.",
        "{cell}：{value} tokens/s。没有测量更小的设置可供比较。",
    ),
    "answer.throughput_tied_alone": (
        "{cell}, the simplest of those within 10 % of the best that cannot be told from it (tied: "
        "{tied}): {value} tokens/s. Nothing "
        "smaller was measured to compare it with.",
        "{cell}，是与最佳设置无法区分、且相差不到 10 % 的设置中最简单的一个（并列：{tied}）：{value} "
        "tokens/s。没有测量更小的设置可供比较。",
    ),
    "answer.none_within": (
        "Cannot tell: in no setting did requests keep within the limits, or hardly any; the lowest "
        "mean latency was that "
        "of {best}. "
        "Give limits of your own with --slo, or a lower rate of arrival.",
        "无法判断：没有任何设置的请求满足限制，或只有极少数满足；平均延迟最低的是 {best}。请用 --slo "
        "给出自己的限制，或降低到达速率。",
    ),
    "answer.none_within_burst": (
        "Cannot tell: all requests were there at once, and hardly any keeps such limits behind a "
        "queue; the lowest mean "
        "latency was that of {best}. Measure with --arrival poisson:{rate}, about half of what this machine can do.",
        "无法判断：所有请求同时到达，排在队列里几乎没有请求能满足这样的限制；平均延迟最低的是 {best}。"
        "请用 --arrival poisson:{rate} 测量，约为本机能力的一半。",
    ),
    "answer.too_few": (
        "Cannot tell: {repeats} repeats of a setting are too few to tell it from another; give at least --repeats "
        "{enough}, better 5.",
        "无法判断：每个设置 {repeats} 次重复太少，无法彼此区分；请至少使用 --repeats {enough}，最好为 5。",
    ),
    "answer.arrivals_decide": (
        "Cannot tell: requests came as {arrival} and the best settings had time to spare, so that the arrivals decided "
        "their tokens/s. "
        "Measure offline work with --arrival burst.",
        "无法判断：请求按 {arrival} 到达，最好的设置仍有余力，其 tokens/s 由到达速率决定。离线任务请用 "
        "--arrival burst 测量。",
    ),
    "answer.no_solo": (
        "Cannot tell: no request came to its end.",
        "无法判断：没有任何请求正常结束。",
    ),
    # What a budget left out.
    "note.budget_cells": (
        "No room in a budget of {budget} for {count} settings: {cells}.",
        "在 {budget} 的时间预算内无法容纳 {count} 个设置：{cells}。",
    ),
    "note.budget_repeats": (
        "Planned {done} repeats of the {planned} asked for: no room for more in a budget of {budget}.",
        "计划 {done} 次重复（要求 {planned} 次）：时间预算 {budget} 内容纳不下更多。",
    ),
    "note.budget_rounds": (
        "Ended after {done} of {planned} repeats: another round would not have ended within the budget of {budget}.",
        "在 {planned} 次重复中完成 {done} 次后结束：再做一轮会超出 {budget} 的时间预算。",
    ),
    # Warnings, each with its advice.
    "advice.tokens_differ": (
        "This is a defect of knee or of its device. Do not use these numbers; report it with the record.",
        "这是 knee 或其设备的缺陷。请勿使用这些数据，并附上记录报告此问题。",
    ),
    "advice.requests_failed": (
        "Find out what the device failed on before you compare anything: try --device reference, or fewer requests.",
        "比较之前请先弄清设备出错的原因：试试 --device reference，或减少请求数。",
    ),
    "warning.late_client": (
        "The load generator was late in {count} of {of} trials, by up to {worst} ms at its 99th "
        "percentile: these trials "
        "are void and count nowhere.",
        "在 {of} 次试验中有 {count} 次负载发生器迟到，第 99 百分位最多迟到 {worst} ms：这些试验作废，不计入任何结果。",
    ),
    "advice.late_client_repeated": (
        "Each was measured again and all is complete: nothing needs to be done.",
        "每次都已重新测量，数据完整：无需处理。",
    ),
    "advice.late_client_missing": (
        "They were measured again and void again: stop what else runs on the machine, then run knee "
        "sweep --resume with "
        "the same command.",
        "重测后仍然作废：请停止机器上的其他任务，然后用同样的命令加 --resume 继续。",
    ),
    "warning.few_repeats": (
        "{count} settings have fewer than {enough} repeats ({least}): there are no intervals for their medians.",
        "{count} 个设置的重复次数少于 {enough}（仅 {least}）：无法给出中位数的区间。",
    ),
    "advice.few_repeats": ("Give --repeats {enough} or more.", "请使用 --repeats {enough} 或更多。"),
    "advice.few_repeats_lost": (
        "Trials were lost (other warnings say why): take the run up with the same command and --resume.",
        "有试验丢失（原因见其他警告）：请用同样的命令加 --resume 继续。",
    ),
    "warning.trials_failed": (
        "{count} trials failed and count nowhere; the first error: {error}",
        "{count} 次试验失败，不计入任何结果；第一个错误：{error}",
    ),
    "advice.clock_gap": (
        "Durations are right, but the machine was not the same before and after: measure again, awake.",
        "时长无误，但前后机器状态不同：请保持机器唤醒后重测。",
    ),
    "advice.few_repeats_interrupted": (
        "The run was cut off: take it up with the same command and --resume.",
        "实验被中断：请用同样的命令加 --resume 继续。",
    ),
    "advice.few_repeats_budget": (
        "Give a longer --budget, or fewer settings for the same time.",
        "请延长 --budget，或在同样时间内减少设置。",
    ),
    "warning.few_percentiles": (
        "{missing} of the latencies are null: {count} requests of a setting are too few for them, {needed} are needed.",
        "延迟的 {missing} 为空：每个设置 {count} 个请求太少，需要 {needed} 个。",
    ),
    "advice.few_percentiles": (
        "If you need them, give --requests {requests} or --repeats {repeats}.",
        "如果需要，请使用 --requests {requests} 或 --repeats {repeats}。",
    ),
    "advice.few_percentiles_trace": (
        "If you need them, give a longer trace, or --repeats {repeats}.",
        "如果需要，请使用更长的到达记录，或 --repeats {repeats}。",
    ),
    "warning.noisy": (
        "Noisy: {cells}. The interval of {worst} is {percent} % wide on either side.",
        "噪声较大：{cells}。{worst} 的区间向两侧各宽 {percent} %。",
    ),
    "advice.noisy_repeats": (
        "{now} repeats were made; --repeats {repeats} narrows the intervals by about {narrower} %.",
        "目前重复了 {now} 次；--repeats {repeats} 可使区间缩小约 {narrower} %。",
    ),
    "advice.noisy_requests": (
        "{now} repeats were made already: longer trials help more now, --requests or --max-new-tokens.",
        "已经重复了 {now} 次：现在延长每次试验更有效，增加 --requests 或 --max-new-tokens。",
    ),
    "advice.noisy_machine": (
        "First see to the machine (the warnings below say what about it); more repeats than {now} "
        "only average over it.",
        "请先处理机器的问题（见下面的警告）；超过 {now} 次的重复只是对噪声取平均。",
    ),
    "warning.drifting_slower": (
        "The machine got slower during the run: service times grew by {percent} % from the first trial to the last.",
        "实验过程中机器变慢：从首次到末次试验，服务时间增加了 {percent} %。",
    ),
    "warning.drifting_faster": (
        "The machine got faster during the run: service times fell by {percent} % from the first trial to the last.",
        "实验过程中机器变快：从首次到末次试验，服务时间减少了 {percent} %。",
    ),
    "advice.drifting": (
        "Cells are compared within rounds, so that comparisons hold; the absolute numbers belong to the middle of the "
        "run. Let the machine settle for some minutes and measure again.",
        "各组在轮内比较，因此比较仍成立；绝对数值对应实验中段。请让机器稳定几分钟后再测。",
    ),
    "warning.throttled": (
        "A fixed piece of arithmetic took over 10 % longer than it can around {count} of {of} trials, up to {worst} % "
        "longer: the processor was slowed down.",
        "在 {of} 次试验中有 {count} 次，一段固定运算比最快时慢 10 % 以上，最多慢 {worst} %：处理器被降速。",
    ),
    "advice.throttled": (
        "Heat, a limit on power, or on a virtual machine its neighbours: let it cool, fix the clock, "
        "or use a machine of "
        "your own.",
        "原因可能是发热、功耗限制，或虚拟机的邻居：让机器降温、固定频率，或使用独占的机器。",
    ),
    "advice.throttled_load": (
        "Other work on the machine is the likely reason: stop it first.",
        "很可能是机器上的其他任务所致：请先停止它们。",
    ),
    "warning.throttled_hot": (
        "The processor reached {celsius} degrees Celsius: it slows itself down there.",
        "处理器温度达到 {celsius} 摄氏度：此时会自动降频。",
    ),
    "warning.throttled_clock": (
        "The processor's clock was {percent} % below its highest in half of the trials.",
        "半数试验中处理器频率比最高值低 {percent} %。",
    ),
    "advice.throttled_hot": (
        "Let it cool, and see to its fans and its power settings; then measure again.",
        "请让机器降温，检查风扇和电源设置，然后重新测量。",
    ),
    "warning.other_load": (
        "Other work kept {cores} cores busy during the trials on average, {worst} at most.",
        "试验期间其他任务平均占用 {cores} 个核，最多 {worst} 个。",
    ),
    "advice.other_load": (
        "Stop other programs and measure again; on a virtual machine it may be its neighbours.",
        "请停止其他程序后重测；在虚拟机上也可能是邻居造成的。",
    ),
    "warning.swap": (
        "{gib} GiB were swapped during a trial: memory is short, and pages came from disk.",
        "一次试验期间有 {gib} GiB 被换入换出：内存不足，部分页面来自磁盘。",
    ),
    "advice.swap": (
        "Close what takes the memory, or use a smaller batch or model.",
        "请关闭占用内存的程序，或使用更小的批或模型。",
    ),
    "warning.cold": (
        "The first decode steps of {count} of {of} trials took {ratio} times as long as later ones: "
        "the warm-up was too "
        "short for this machine.",
        "在 {of} 次试验中有 {count} 次，最初的解码步耗时是后来的 {ratio} 倍：预热对本机来说太短。",
    ),
    "advice.cold": (
        "Give longer trials, --requests or --max-new-tokens, so that the first steps weigh less.",
        "请延长试验（--requests 或 --max-new-tokens），使最初几步的影响变小。",
    ),
    "warning.saturated": (
        "Requests came ({arrival}) faster than these settings serve them: {cells}. Their latency is "
        "that of a queue which "
        "grows as long as requests come.",
        "请求到达（{arrival}）快于这些设置的处理能力：{cells}。它们的延迟来自随到达不断增长的队列。",
    ),
    "advice.saturated_some": (
        "What these settings can do is about {best} requests/s at most; their latency says only that "
        "this is not enough.",
        "这些设置最多约 {best} 个请求/s；它们的延迟只说明这还不够。",
    ),
    "advice.saturated_all": (
        "No setting keeps up: give a rate below {best} requests/s, or take this as a test of throughput alone.",
        "没有任何设置跟得上：请将速率降到 {best} 个请求/s 以下，或仅把它当作吞吐测试。",
    ),
}

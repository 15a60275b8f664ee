"""All words that knee shows, in English and in Chinese, side by side.

To add one: a line in `_WORDS` or in the file of its topic (`words_*.py`), key -> (English, Chinese), with the same
placeholders in both (`str.format`). Keys start with their topic. A test sees to it that every key that the source
asks for exists in both languages.

A record keeps its sentences in English, for scripts; `translated` finds the entry that such a sentence was made from
and gives it in another language, numbers and all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from string import Formatter
from typing import Literal

from knee.lab import words_answer, words_claims, words_compare, words_explain, words_gpu, words_report

Lang = Literal["en", "zh"]
LANGUAGES: tuple[Lang, ...] = ("en", "zh")

_WORDS: Mapping[str, tuple[str, str]] = {
    # The template of the experiment log.
    "log.name": ("Experiment name", "实验名称"),
    "log.date": ("Date", "日期"),
    "log.hardware": ("Hardware (GPU / CPU model)", "硬件（GPU / CPU 型号）"),
    "log.model": ("Model @ dtype", "模型 @ 数据类型"),
    "log.prompt": ("Prompt", "提示词"),
    "log.batch_policy": ("Batch policy (size / wait window)", "批处理策略（批大小 / 等待窗口）"),
    "log.kv_cache": ("KV cache", "KV 缓存"),
    "log.metrics": ("Metrics", "指标"),
    "log.load_model": ("load_model", "加载模型 load_model"),
    "log.load_tokenizer": ("load_tokenizer", "加载分词器 load_tokenizer"),
    "log.prefill": ("prefill", "预填充 prefill"),
    "log.decode_loop": ("decode_loop", "解码循环 decode_loop"),
    "log.tokens_per_s": ("token/s", "token/s"),
    "log.gpu_utilization": ("GPU utilization", "GPU 利用率"),
    "log.notes": ("Notes", "备注"),
    # Beside the template.
    "record.status": ("Status", "状态"),
    "record.command": ("Command", "命令"),
    "record.software": ("Software", "软件环境"),
    "record.workload": ("Workload", "负载"),
    "record.output": ("Output", "输出"),
    "record.warnings": ("Warnings", "警告"),
    "record.findings": ("Findings", "分析"),
    "record.none": ("none", "无"),
    "record.no_metrics": (
        "There are no metrics: the run did not get that far.",
        "没有指标：实验在得出指标之前就结束了。",
    ),
    "record.see_table": ("see the table", "见下表"),
    "record.see_baseline": ("— (`knee baseline` reads it)", "—（由 `knee baseline` 读取）"),
    "record.hardware": ("{cpu}, {cores} cores, {memory:.1f} GiB", "{cpu}，{cores} 核，{memory:.1f} GiB 内存"),
    "record.gpu": ("{name} ({memory:.0f} GiB, driver {driver})", "{name}（{memory:.0f} GiB，驱动 {driver}）"),
    "record.workload_line": (
        "requests: {requests}, prompt tokens: {prompt}, new tokens each: {new}, arrival: {arrival}, seed: {seed}",
        "{requests} 个请求，提示词 {prompt} 个 token，每个生成 {new} 个 token，到达方式 {arrival}，随机种子 {seed}",
    ),
    "record.cut_to": ("{prompt}, repeated and cut to {lengths} tokens", "{prompt}，重复并截取为 {lengths} 个 token"),
    "record.more_prompts": (" (and {count} more in record.json)", "（另有 {count} 条，见 record.json）"),
    "record.token_ids": ("token ids {ids}", "token id {ids}"),
    "record.cut": (
        "… ({length} characters, all of them in record.json)",
        "……（共 {length} 个字符，全文见 record.json）",
    ),
    "record.prefill_cold_warm": (
        "{cold:.2f} ms cold (first forward pass) · {warm:.2f} ms warm (median), {per_token:.2f} ms/token",
        "冷启动 {cold:.2f} ms（首次前向）· 预热后 {warm:.2f} ms（中位数），{per_token:.2f} ms/token",
    ),
    "record.steps": ("{total:.2f} ms, {steps} steps", "{total:.2f} ms，{steps} 步"),
    "record.steps_each": (
        "{total:.2f} ms, {steps} steps, {each:.2f} ms/step",
        "{total:.2f} ms，{steps} 步，{each:.2f} ms/步",
    ),
    "status.running": ("running", "进行中"),
    "status.done": ("done", "已完成"),
    "status.interrupted": ("interrupted", "已中断"),
    "status.failed": ("failed", "失败"),
    "switch.on": ("on", "开"),
    "switch.off": ("off", "关"),
    "switch.both": ("on and off", "开与关"),
    "answer.yes": ("yes", "是"),
    "answer.no": ("no", "否"),
    # Sections and tables, by kind of experiment.
    "baseline.title": ("Baseline: one request", "基线：单个请求"),
    "baseline.number": ("Number", "项目"),
    "baseline.value": ("Value", "数值"),
    "baseline.cold": ("Prefill, cold: the first forward pass after loading", "预填充（冷）：加载后的首次前向"),
    "baseline.warm": ("Prefill, warm: median of {runs} runs", "预填充（热）：{runs} 次的中位数"),
    "baseline.per_token": ("Prefill, warm, a prompt token", "预填充（热），平均每个提示词 token"),
    "baseline.tokenize": ("Tokenize", "分词"),
    "baseline.decode_loop": ("Decode loop, {steps} steps", "解码循环，{steps} 步"),
    "baseline.decode_step": ("Decode, a step", "解码，平均每步"),
    "baseline.total": ("Total (warm prefill + decode loop)", "总计（热预填充 + 解码循环）"),
    "baseline.throughput": ("Output throughput", "输出吞吐"),
    "baseline.kv_shape": (
        "Final KV cache (batch, heads, tokens, head_dim)",
        "最终 KV 缓存（批, 头数, token 数, head_dim）",
    ),
    "inspect.title": ("Prefill and decode taken apart", "拆解预填充与解码"),
    "inspect.title_off": ("The same with the KV cache off", "关闭 KV 缓存，同样的步骤"),
    "inspect.prefill": (
        "Prefill: {ms:.2f} ms, logits {logits}, KV cache {layers} layers x {kv}",
        "预填充：{ms:.2f} ms，logits {logits}，KV 缓存 {layers} 层 x {kv}",
    ),
    "inspect.step": ("step", "步"),
    "inspect.ms": ("ms", "毫秒"),
    "inspect.kv_len": ("KV length", "KV 长度"),
    "inspect.token_id": ("token id", "token id"),
    "inspect.token": ("token", "token"),
    "inspect.top": ("likeliest (probability)", "最可能的候选（概率）"),
    "inspect.matches": ("Same tokens as `knee generate`: {answer}", "与 `knee generate` 生成的 token 一致：{answer}"),
    "inspect.same_tokens": ("Same tokens as with the KV cache on: {answer}", "与开启 KV 缓存时的 token 一致：{answer}"),
    "kvcache.title": ("When the KV cache pays", "KV 缓存何时划算"),
    "kvcache.prompt_length": ("prompt tokens", "提示词 token 数"),
    "kvcache.kv_cache": ("KV cache", "KV 缓存"),
    "kvcache.prefill": ("prefill ms", "预填充 ms"),
    "kvcache.second_token": ("2nd token ms", "第 2 个 token ms"),
    "kvcache.last_token": ("last token ms", "最后一个 token ms"),
    "kvcache.decode_step": ("ms/decode step", "ms/解码步"),
    "kvcache.total": ("total ms", "总计 ms"),
    "kvcache.memory": ("KV memory MiB", "KV 内存 MiB"),
    "kvcache.pays_from": (
        "It pays from a context of {tokens} tokens on; it takes {bytes} bytes a token.",
        "上下文达到 {tokens} 个 token 起划算；每个 token 占用 {bytes} 字节。",
    ),
    "kvcache.never_pays": (
        "It did not pay at any of these lengths; it takes {bytes} bytes a token.",
        "在所测长度上都不划算；每个 token 占用 {bytes} 字节。",
    ),
    "kvcache.same_tokens": ("Same tokens with the cache on and off: {answer}", "开关缓存生成的 token 一致：{answer}"),
    "sweep.title": ("Batch policies compared", "批处理策略对比"),
    "sweep.title_log": ("In the columns of the log", "按实验日志的列"),
    "sweep.log_columns": (
        "`total s` is the median over the repeats. `tokens/s` counts the tokens given to requests, never padding. "
        "The log's `mean latency` and `p95` are service times: a request's own work, without its time in the queue.",
        "`总时间` 为多次重复的中位数。`tokens/s` 只统计真正交付给请求的 token，不含填充。"
        "日志中的“平均延迟”与“p95”是服务时间：请求自身的处理时间，不含排队时间。",
    ),
    "sweep.title_knee": ("As the user of the service sees it", "从服务使用者的角度看"),
    "sweep.definitions": (
        "All in ms. Queue, TTFT and E2EL count from the scheduled arrival: queue ends with the start of the prefill, "
        "TTFT with the first token, E2EL with the last. TPOT = (E2EL − TTFT) / (tokens − 1); ITL: gaps between tokens.",
        "单位均为 ms。排队时间、首 token 延迟（TTFT）和端到端延迟（E2EL）都从计划到达时刻算起，"
        "分别到预填充开始、首个 token、最后一个 token 为止。"
        "TPOT =（E2EL − TTFT）/（token 数 − 1）；ITL 为相邻 token 的间隔。",
    ),
    "sweep.title_batch": ("How full the batches were", "批的填充情况"),
    "sweep.policy": ("policy", "策略"),
    "sweep.batch": ("batch", "批大小"),
    "sweep.wait": ("wait ms", "等待窗口 ms"),
    "sweep.total": ("total s", "总时间 s"),
    "sweep.tokens_per_s": ("tokens/s", "tokens/s"),
    "sweep.mean_latency": ("mean latency ms", "平均延迟 ms"),
    "sweep.p95": ("p95 ms", "p95 ms"),
    "sweep.queue_mean": ("queue mean", "排队 均值"),
    "sweep.queue_p95": ("queue p95", "排队 p95"),
    "sweep.ttft_mean": ("TTFT mean", "TTFT 均值"),
    "sweep.ttft_p95": ("TTFT p95", "TTFT p95"),
    "sweep.tpot_mean": ("TPOT mean", "TPOT 均值"),
    "sweep.itl_p95": ("ITL p95", "ITL p95"),
    "sweep.e2el_mean": ("E2EL mean", "E2EL 均值"),
    "sweep.e2el_p95": ("E2EL p95", "E2EL p95"),
    "sweep.slots": ("slots used", "槽位利用率"),
    "sweep.mean_batch": ("mean batch", "平均批大小"),
    "sweep.failed": ("failed", "失败数"),
    "sweep.goodput": ("within --slo (requests/s)", "满足 --slo 的请求/s"),
    "sweep.title_tradeoff": ("Trade-off against the first row", "相对第一行的取舍"),
    "sweep.throughput_change": ("throughput", "吞吐"),
    "sweep.service_change": ("service time", "服务时间"),
    "sweep.e2el_change": ("E2EL", "端到端延迟"),
    "sweep.efficiency": ("throughput gained / service time paid", "吞吐增幅 / 服务时间增幅"),
    "sweep.same_tokens": ("Same tokens in every cell: {answer}", "各组生成的 token 完全一致：{answer}"),
    # knee doctor: what spoils measurements here, and what to do about it.
    "doctor.other_load": (
        "Something else keeps {cores:.2f} cores busy",
        "有其他负载占用了 {cores:.2f} 个核",
    ),
    "doctor.other_load.advice": (
        "Stop other programs, or measure when the machine is idle; do not compare with numbers from a quiet machine.",
        "请关闭其他程序，或等机器空闲再测；不要与空闲机器上测得的数据比较。",
    ),
    "doctor.one_core": ("There is only one core", "只有一个核可用"),
    "doctor.one_core.advice": (
        "Whatever else runs takes time from the measurement: repeat more often, trust intervals and not single runs.",
        "任何其他进程都会抢占测量的时间：请增加重复次数，看置信区间而不是单次结果。",
    ),
    "doctor.cpu_quota": (
        "A CPU quota allows {quota:.2f} cores and pauses the process when it is used up",
        "CPU 配额限制为 {quota:.2f} 个核，用尽后进程会被暂停",
    ),
    "doctor.cpu_quota.advice": (
        "Give the container whole cores (--cpuset-cpus instead of --cpus), and no more threads than the quota.",
        "请为容器绑定整核（用 --cpuset-cpus 代替 --cpus），线程数不要超过配额。",
    ),
    "doctor.swap": ("{gib:.2f} GiB of swap are in use", "已使用 {gib:.2f} GiB 交换空间"),
    "doctor.swap.advice": (
        "Free memory before measuring: weights that were swapped out come back at the speed of the disk.",
        "测量前请先释放内存：被换出的权重只能以磁盘速度读回。",
    ),
    "doctor.governor": (
        "The CPU frequency governor is {governor}: the clock changes during a run",
        "CPU 调频策略为 {governor}：运行过程中频率会变化",
    ),
    "doctor.governor.advice": (
        "Set it to performance: sudo cpupower frequency-set -g performance",
        "请改为 performance：sudo cpupower frequency-set -g performance",
    ),
    "doctor.battery": ("The machine runs on battery", "机器正在使用电池供电"),
    "doctor.battery.advice": (
        "Plug it in: on battery the processor saves power.",
        "请接通电源：使用电池时处理器会降频省电。",
    ),
    "doctor.hot": ("The processor is at {celsius:.0f} °C", "处理器温度为 {celsius:.0f} °C"),
    "doctor.hot.advice": (
        "Let it cool down: near its limit it lowers its clock.",
        "请先让它降温：接近温度上限时处理器会降频。",
    ),
    "doctor.coarse_timer": ("The clock moves in steps of {ns} ns", "计时器的最小步长为 {ns} ns"),
    "doctor.coarse_timer.advice": (
        "Single steps cannot be timed here: compare totals of long runs only.",
        "无法对单步计时：只应比较长时间运行的总时间。",
    ),
    "doctor.unsteady": (
        "The same work was {spread:.0%} slower in the median run than in the best one",
        "同样的计算，中位数比最快一次慢 {spread:.0%}",
    ),
    "doctor.unsteady.advice": (
        "The machine is not steady: repeat more often and leave small differences undecided.",
        "机器状态不稳定：请增加重复次数，小的差异不下结论。",
    ),
    "doctor.bfloat16_with": (
        "as NumPy runs it; the processor has instructions for it ({isa}), which go unused here",
        "NumPy 的实际速度；处理器有相应指令（{isa}），此处未使用",
    ),
    "doctor.bfloat16_without": (
        "as NumPy runs it; the processor has no instructions for it",
        "NumPy 的实际速度；处理器没有相应指令",
    ),
    "doctor.bfloat16_native": (
        "the processor has instructions for it ({isa})",
        "处理器有相应指令（{isa}）",
    ),
    "doctor.bfloat16_widened": (
        "the processor has no instructions for it: widened to float32",
        "处理器没有相应指令：先扩展为 float32",
    ),
    "doctor.kernels": ("Native kernels", "原生内核"),
    "doctor.kernels_list": (
        "{in_use} is used; this CPU also runs: {others}; built, but not for this CPU: {absent}",
        "正在使用 {in_use}；本机还支持：{others}；已编译但本机不支持：{absent}",
    ),
    "doctor.no_kernels": (
        "none: knee was installed without its extension; all speeds are NumPy's",
        "无：安装时未编译原生扩展；以下速度均为 NumPy 的速度",
    ),
    "doctor.title": ("This machine", "本机"),
    "doctor.cpu": ("CPU", "CPU"),
    "doctor.cores": ("Usable cores", "可用核数"),
    "doctor.isa": ("Vector extensions", "向量指令集"),
    "doctor.memory": ("Memory", "内存"),
    "doctor.gpus": ("GPUs", "GPU"),
    "doctor.read": ("Read bandwidth", "读带宽"),
    "doctor.copy": ("Copy bandwidth (read + write)", "拷贝带宽（读 + 写）"),
    "doctor.float32": ("float32 arithmetic", "float32 算力"),
    "doctor.bfloat16": ("bfloat16 arithmetic", "bfloat16 算力"),
    "doctor.int8": ("int8 arithmetic", "int8 算力"),
    "doctor.int4": ("int4 arithmetic", "int4 算力"),
    "doctor.rate": (
        "{best:.1f} {unit} best, {median:.1f} median of {runs} ({how})",
        "最高 {best:.1f} {unit}，{runs} 次中位数 {median:.1f}（{how}）",
    ),
    "doctor.load": ("Other load", "其他负载"),
    "doctor.load_cores": ("{cores:.2f} cores", "{cores:.2f} 个核"),
    "doctor.swap_used": ("Swap in use", "已用交换空间"),
    "doctor.quota": ("CPU quota", "CPU 配额"),
    "doctor.scaling_governor": ("Frequency governor", "调频策略"),
    "doctor.power": ("Power", "供电"),
    "doctor.on_battery": ("battery", "电池"),
    "doctor.on_mains": ("mains", "外接电源"),
    "doctor.temperature": ("Hottest sensor", "最高传感器温度"),
    "doctor.timer": ("Timer resolution", "计时器分辨率"),
    "doctor.unknown": ("this system does not say", "系统未提供"),
    "doctor.no_findings": ("Nothing here would spoil a measurement.", "没有发现会影响测量的问题。"),
    "doctor.measuring": ("measuring, a few seconds …", "正在测量，需要几秒……"),
    # knee show and knee list.
    "list.run": ("run", "实验"),
    "list.kind": ("kind", "类型"),
    "list.name": ("name", "名称"),
    "list.model": ("model", "模型"),
    "list.status": ("status", "状态"),
    "list.unreadable": ("unreadable: {reason}", "无法读取：{reason}"),
    "list.empty": ("No runs in {out}.", "{out} 中没有实验记录。"),
    # What experiments have to say about themselves. Records keep these sentences.
    "note.cold_prefill": (
        "The first prefill after loading took {ratio} times as long as a warm one: a cold start, no steady cost.",
        "加载后的首次预填充耗时是预热后的 {ratio} 倍：这是冷启动，不是稳态成本。",
    ),
    # The first two are forms of the third, which is the one that is asked for.
    "note.dtype_narrowest": (
        "Weights in {dtype}: the narrowest type that holds the file's {storages} without loss.",
        "权重使用 {dtype}：能够无损保存文件中 {storages} 的最窄类型。",
    ),
    "note.dtype_rounded": (
        "Weights in {dtype}: rounded from the file's {storages}.",
        "权重使用 {dtype}：由文件中的 {storages} 舍入得到。",
    ),
    "note.dtype": ("Weights in {dtype}: {reason}.", "权重使用 {dtype}：{reason}。"),
    "note.batch_invariant_off": (
        "Products of many rows went to a library (--batch-invariant off): tokens may depend on the batch.",
        "行数多的矩阵乘法交给了函数库（--batch-invariant off）：输出的 token 可能随批次而变。",
    ),
    "note.overlap_off": (
        "The engine waited for each step before it planned the next (--overlap off).",
        "引擎等每一步结束后才规划下一步（--overlap off）。",
    ),
    "note.first_token": (
        "The prefill chose the first token, the argmax of the last position: {token}.",
        "预填充给出第一个 token（最后位置的 argmax）：{token}。",
    ),
    "warning.clock_gap": (
        "{seconds} s are missing between the wall clock and the monotonic one: the machine slept, or was set.",
        "墙上时钟与单调时钟相差 {seconds} 秒：测量期间机器休眠过，或时间被调整过。",
    ),
    "warning.threads": (
        "{threads} threads share {cores} usable cores: they wait for each other at every step; give --threads {cores} "
        "or fewer.",
        "{threads} 个线程共用 {cores} 个可用核：每一步都要互相等待；请用 --threads {cores} 或更少。",
    ),
    "warning.generate_differs": (
        "The hand-written loop and the engine gave different tokens: one of them is wrong.",
        "手写循环与引擎生成的 token 不同：其中之一有误。",
    ),
    "warning.kv_cache_tokens_differ": (
        "With the KV cache off other tokens came out than with it on: their times are not those of the same work.",
        "开启与关闭 KV 缓存生成的 token 不同：两者的时间对应的不是同样的工作。",
    ),
    "warning.tokens_differ": (
        "{count} of {of} requests got different tokens in different cells (the first is request {first}): the cells "
        "did not do the same work, and their times cannot be compared.",
        "{of} 个请求中有 {count} 个在不同组中得到了不同的 token（第一个是请求 {first}）：各组做的不是同样的工作，"
        "时间不可比较。",
    ),
    "warning.requests_failed": (
        "{count} requests failed; the first error: {error}",
        "{count} 个请求失败；第一个错误：{error}",
    ),
    "finding.kv_pays_from": (
        "A decode step is faster with the KV cache from a context of {tokens} tokens on.",
        "上下文达到 {tokens} 个 token 起，开启 KV 缓存的解码步更快。",
    ),
    "finding.kv_pays_never": (
        "At the longest measured context a decode step was still not faster with the KV cache.",
        "在所测的最长上下文处，开启 KV 缓存的解码步仍不更快。",
    ),
    "finding.kv_total": (
        "A prompt of {length} tokens takes {on} ms in all with the cache and {off} ms without: {ratio} times.",
        "{length} 个 token 的提示词，开启缓存共需 {on} ms，关闭需 {off} ms：后者是前者的 {ratio} 倍。",
    ),
    "finding.kv_memory": (
        "The price is memory: {each} KiB a token, {memory} MiB for the request with {length} prompt tokens.",
        "代价是内存：每个 token {each} KiB；提示词为 {length} 个 token 的请求共占 {memory} MiB。",
    ),
    # What commands print: tables, one caption each, and the lines around them.
    "generate.summary": (
        "{prompt_tokens} → {output_tokens} tokens · prefill {prefill_ms:.1f} ms (cold) · "
        "decode {decode_ms_per_step:.2f} ms/token · {output_tokens_per_s:.1f} tokens/s",
        "{prompt_tokens} → {output_tokens} 个 token · 预填充 {prefill_ms:.1f} ms（冷启动）· "
        "解码 {decode_ms_per_step:.2f} ms/token · {output_tokens_per_s:.1f} tokens/s",
    ),
    "generate.summary_one": (
        "{prompt_tokens} → {output_tokens} token · prefill {prefill_ms:.1f} ms (cold)",
        "{prompt_tokens} → {output_tokens} 个 token · 预填充 {prefill_ms:.1f} ms（冷启动）",
    ),
    "generate.token": ("token", "token"),
    "generate.logprob": ("logprob", "对数概率"),
    "generate.others": ("likeliest", "最可能的候选"),
    "models.alias": ("name", "名称"),
    "models.source": ("source", "来源"),
    "models.size": ("size", "大小"),
    "models.here": ("here", "已下载"),
    "models.path": ("path", "路径"),
    "run.kept": ("Kept in {path}", "已保存到 {path}"),
    "run.interrupted": (
        "interrupted; what was measured is kept in {path}",
        "已中断；已测得的数据保存在 {path}",
    ),
    "run.go_on": (
        "go on with the same command and --resume {run}",
        "用同样的命令加 --resume {run} 可继续",
    ),
    "run.warning": ("warning: {message}", "警告：{message}"),
    "sweep.title_intervals": ("Medians of the repeats, with 95 % intervals", "各次重复的中位数及 95 % 区间"),
    "sweep.intervals": (
        "Latencies: the mean over a trial's requests, counted from arrival; the median of the "
        "trials. Power is requests/s "
        "over seconds of latency.",
        "延迟为一次试验内请求的平均值（从到达算起），再取各次试验的中位数。功效 = 请求/s ÷ 延迟秒数。",
    ),
    "sweep.repeats": ("repeats", "重复"),
    "sweep.power": ("power", "功效"),
    "answer.title": ("Answer", "结论"),
    "answer.knee": ("Knee", "拐点"),
    "answer.chat": ("Live chat", "在线聊天"),
    "answer.api": ("API service", "API 服务"),
    "answer.offline": ("Offline work", "离线任务"),
    "answer.slo": ("Within your limits", "在给定限制内"),
    "answer.clear": ("clear", "明确"),
    "answer.tied": ("tied", "并列"),
    "answer.cannot_tell": ("cannot tell", "无法判断"),
    "answer.supported": ("supported", "成立"),
    "answer.refuted": ("refuted", "不成立"),
    "answer.not_measured": ("not measured", "未测量"),
    "answer.limits": ("Limits: {limits}.", "限制：{limits}。"),
    "answer.left_out": ("Left out", "未测部分"),
    "answer.claims": ("What such logs conclude, tested here", "此类日志的常见结论在本机的检验"),
    "answer.statement": ("claim", "论断"),
    "answer.verdict": ("verdict", "判定"),
    "answer.evidence": ("evidence", "证据"),
    "progress.best": (
        "{label} · best so far {best}: {throughput:.1f} tokens/s, {latency:.0f} ms",
        "{label} · 目前最佳 {best}：{throughput:.1f} tokens/s，{latency:.0f} ms",
    ),
    "progress.left": ("{label} · {minutes} left", "{label} · 剩余 {minutes}"),
    "run.heading": ("{model} @ {dtype}, {device}", "{model} @ {dtype}，{device}"),
    "table.baseline_about": (
        "Cold: the first forward pass after loading. Warm: the median of {runs} later ones.",
        "冷：加载后的首次前向。热：之后 {runs} 次的中位数。",
    ),
    "table.each": ("ms/token", "ms/token"),
    "table.load_model": ("load model", "加载模型"),
    "table.load_tokenizer": ("load tokenizer", "加载分词器"),
    "table.tokenize": ("tokenize", "分词"),
    "table.cold": ("prefill, cold", "预填充（冷）"),
    "table.warm": ("prefill, warm", "预填充（热）"),
    "table.loop": ("decode loop, {steps} steps", "解码循环，{steps} 步"),
    "table.total": ("total, warm", "总计（热）"),
    "table.speed": ("{speed} tokens/s", "{speed} tokens/s"),
    "table.baseline_more": (
        "{prompt} → {output} tokens · KV cache {shape}",
        "{prompt} → {output} 个 token · KV 缓存 {shape}",
    ),
    "table.inspect_about": (
        "A row is a decode step: one token in, one out. “no cache” is that step with the whole prefix run again.",
        "每行是一个解码步：输入一个 token，输出一个 token。“无缓存”是把整个前缀重新计算的同一步。",
    ),
    "table.inspect_prefill": (
        "Prefill {ms} ms, {ms_off} ms without the cache · logits {logits} · KV cache {layers} x {kv}",
        "预填充 {ms} ms，无缓存 {ms_off} ms · logits {logits} · KV 缓存 {layers} x {kv}",
    ),
    "table.step": ("step", "步"),
    "table.ms": ("ms", "ms"),
    "table.ms_off": ("no cache ms", "无缓存 ms"),
    "table.kv_len": ("KV length", "KV 长度"),
    "table.token": ("token", "token"),
    "table.top": ("likeliest", "最可能的候选"),
    "table.same_yes": (
        "The hand-written loop, the engine and the loop without a cache gave the same tokens.",
        "手写循环、引擎、无缓存循环给出的 token 完全一致。",
    ),
    "table.kvcache_about": (
        "First and last are decode steps; ms/step is the mean of all of them.",
        "“首步”和“末步”均为解码步；“ms/步”是所有解码步的平均值。",
    ),
    "table.hidden": (
        "Columns hidden at this width: {count}; knee show has all.",
        "此宽度下隐藏的列数：{count}；knee show 会显示全部。",
    ),
    "table.prompt": ("prompt\ntokens", "提示词\ntoken"),
    "table.cache": ("KV\ncache", "KV\n缓存"),
    "table.prefill": ("prefill\nms", "预填充\nms"),
    "table.first": ("first\nms", "首步\nms"),
    "table.last": ("last\nms", "末步\nms"),
    "table.step_ms": ("ms/step", "ms/步"),
    "table.total_ms": ("total\nms", "总计\nms"),
    "table.memory": ("KV\nMiB", "KV\nMiB"),
    "table.sweep_about": (
        "total s, tokens/s, service time and its p95 are the log's columns; what it calls latency is service time. "
        "Here latency is what a user waits: from arrival to the last token, queue included.",
        "总时间 s、tokens/s、服务时间及其 p95 对应日志的列；日志所称“延迟”即服务时间。这里的延迟是用户真正的等待："
        "从到达到末 token，含排队。",
    ),
    "table.policy": ("policy", "策略"),
    "table.batch": ("batch", "批"),
    "table.wait": ("wait\nms", "窗口\nms"),
    "table.total_s": ("total\ns", "总时间\ns"),
    "table.tokens_per_s": ("tokens/s", "tokens/s"),
    "table.service_mean": ("service\nms", "服务\nms"),
    "table.service_p95": ("p95\nms", "p95\nms"),
    "table.queue": ("queue\nms", "排队\nms"),
    "table.ttft": ("TTFT\nms", "TTFT\nms"),
    "table.tpot": ("TPOT\nms", "TPOT\nms"),
    "table.e2el": ("latency\nms", "延迟\nms"),
    "table.e2el_p95": ("p95\nms", "p95\nms"),
    "table.goodput": ("within\nslo/s", "达标\n/s"),
    "table.slots": ("slots\n%", "槽位\n%"),
    "table.tradeoff_about": (
        "Against the first row. Efficiency is throughput gained per service time paid, as the log computes it.",
        "相对第一行。效率 = 吞吐增幅 / 服务时间增幅，与日志的算法一致。",
    ),
    "table.throughput_change": ("throughput", "吞吐"),
    "table.service_change": ("service", "服务时间"),
    "table.e2el_change": ("latency", "延迟"),
    "table.efficiency": ("efficiency", "效率"),
    # Why something is null.
    "note.ran_on_cpu": (
        "GPU utilization: the model ran on the CPU (device {device})",
        "GPU 利用率：模型在 CPU 上运行（设备 {device}）",
    ),
    "note.no_gpu": (
        "GPU utilization: there is no NVIDIA GPU here (no nvidia-smi)",
        "GPU 利用率：本机没有 NVIDIA GPU（找不到 nvidia-smi）",
    ),
}

# Topics with many words have files of their own.
MESSAGES: Mapping[str, tuple[str, str]] = {
    **_WORDS,
    **words_answer.WORDS,
    **words_claims.WORDS,
    **words_compare.WORDS,
    **words_explain.WORDS,
    **words_gpu.WORDS,
    **words_report.WORDS,
}


def text(lang: Lang, key: str, **values: object) -> str:
    """The words for `key`, with `values` in their places."""
    return MESSAGES[key][LANGUAGES.index(lang)].format(**values)


def translated(lang: Lang, sentence: str) -> str:
    """A sentence that a record keeps in English, in `lang`; as it is where no message has this form."""
    if lang == "en":
        return sentence
    for pattern, target in _stored():
        if match := pattern.fullmatch(sentence):
            return target.format(**match.groupdict())
    return sentence


def dtype_notes(dtype: str, reason: str, lang: Lang) -> list[str]:
    """Why a device keeps the weights in this type, as a sentence; none where it gives no reason."""
    return [translated(lang, text("en", "note.dtype", dtype=dtype, reason=reason))] if reason else []


_STORED = (
    "note.",
    "warning.",
    "advice.",
    "finding.",
    "claim.",
    "answer.",
    "doctor.",
)  # topics whose English words end up in records


@cache
def _stored() -> list[tuple[re.Pattern[str], str]]:
    """The template with the most words of its own first: what it matches, a shorter one may match by accident."""
    rows = [words for key, words in MESSAGES.items() if key.startswith(_STORED)]
    rows.sort(key=lambda words: -sum(len(literal) for literal, *_ in Formatter().parse(words[0])))
    return [(_pattern(english), _without_formats(chinese)) for english, chinese in rows]


def _pattern(template: str) -> re.Pattern[str]:
    parts, seen = [], set[str]()
    for literal, name, _, _ in Formatter().parse(template):
        parts.append(re.escape(literal))
        if name:
            parts.append(f"(?P={name})" if name in seen else f"(?P<{name}>.+?)")
            seen.add(name)
    return re.compile("".join(parts), re.DOTALL)


def _without_formats(template: str) -> str:
    # The values found in a sentence are already formatted.
    parsed = Formatter().parse(template)
    return "".join(
        literal.replace("{", "{{").replace("}", "}}") + (f"{{{name}}}" if name else "")
        for literal, name, _, _ in parsed
    )

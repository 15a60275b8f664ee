"""All words that knee shows, in English and in Chinese, side by side.

To add one: a line in `MESSAGES`, key -> (English, Chinese), with the same placeholders in both (`str.format`). Keys
start with their topic. A test sees to it that every key that the source asks for exists in both languages.

A record keeps its sentences in English, for scripts; `translated` finds the entry that such a sentence was made from
and gives it in another language, numbers and all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from string import Formatter
from typing import Literal

Lang = Literal["en", "zh"]
LANGUAGES: tuple[Lang, ...] = ("en", "zh")

MESSAGES: Mapping[str, tuple[str, str]] = {
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
    "record.findings": ("Findings", "结论"),
    "record.none": ("none", "无"),
    "record.no_metrics": (
        "There are no metrics: the run did not get that far.",
        "没有指标：实验在得出指标之前就结束了。",
    ),
    "record.see_table": ("see the table", "见下表"),
    "record.hardware": ("{cpu}, {cores} cores, {memory:.1f} GiB", "{cpu}，{cores} 核，{memory:.1f} GiB 内存"),
    "record.gpu": ("{name} ({memory:.0f} GiB, driver {driver})", "{name}（{memory:.0f} GiB，驱动 {driver}）"),
    "record.workload_line": (
        "{requests} requests, {prompt} prompt tokens, {new} new tokens each, arrival {arrival}, seed {seed}",
        "{requests} 个请求，提示词 {prompt} 个 token，每个生成 {new} 个 token，到达方式 {arrival}，随机种子 {seed}",
    ),
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
        "It pays from prompts of {tokens} tokens on; it takes {bytes} bytes a token.",
        "提示词达到 {tokens} 个 token 起划算；每个 token 占用 {bytes} 字节。",
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
        "分别到预填充开始、首个 token、最后一个 token 为止。TPOT =（E2EL − TTFT）/（token 数 − 1）；ITL 为相邻 token 的间隔。",
    ),
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
    "sweep.title_tradeoff": ("Trade-off against the first row", "相对第一行的取舍"),
    "sweep.throughput_change": ("throughput", "吞吐"),
    "sweep.service_change": ("service time", "服务时间"),
    "sweep.e2el_change": ("E2EL", "端到端延迟"),
    "sweep.efficiency": ("throughput / latency", "吞吐/延迟 比"),
    "sweep.same_tokens": ("Same tokens in every cell: {answer}", "各组生成的 token 完全一致：{answer}"),
    # Why something is null.
    "note.no_gpu": (
        "GPU utilization: there is no NVIDIA GPU here (no nvidia-smi)",
        "GPU 利用率：本机没有 NVIDIA GPU（找不到 nvidia-smi）",
    ),
    "note.gpu_unreadable": (
        "GPU utilization: nvidia-smi gave no number",
        "GPU 利用率：nvidia-smi 没有给出数值",
    ),
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


_STORED = ("note.", "warning.", "finding.")  # topics whose English words end up in records


@cache
def _stored() -> list[tuple[re.Pattern[str], str]]:
    rows = [words for key, words in MESSAGES.items() if key.startswith(_STORED)]
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

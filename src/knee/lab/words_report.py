"""The words of the HTML report and the experiment log. Key -> (English, Chinese); see `messages.py`."""

from __future__ import annotations

from collections.abc import Mapping

WORDS: Mapping[str, tuple[str, str]] = {
    # The page and its parts.
    "report.contents": ("Contents", "目录"),
    "report.footer": (
        "Made by knee {version} from record and raw rows of this run alone.",
        "由 knee {version} 生成，数据仅来自本次实验的记录与原始行。",
    ),
    "report.section.answer": ("The answer", "结论"),
    "report.section.throughput": ("Throughput against latency", "吞吐与延迟"),
    "report.section.windows": ("Batch size against wait window", "批大小与等待窗口"),
    "report.section.requests": ("How batches form", "批是怎样形成的"),
    "report.section.steps": ("What a decode step costs", "一个解码步的成本"),
    "report.section.time": ("Where the time went", "时间花在哪里"),
    "report.section.spread": ("How latencies spread", "延迟的分布"),
    "report.section.why": ("Why", "原因"),
    "report.section.claims": ("What such logs usually conclude", "这类日志常见的论断"),
    "report.section.environment": ("The environment", "实验环境"),
    "report.section.tables": ("All numbers", "全部数据"),
    "report.alarm.title": ("Do not believe this run.", "本次实验的结果不可信。"),
    "report.alarm.words": (
        "What had to give the same tokens did not, so it did not do the same work: nothing below can be compared.",
        "本应得到相同 token 的各部分结果不一致，说明它们做的不是同样的工作：以下任何数字都不可比较。",
    ),
    # The answer.
    "report.answer.none": (
        "This record holds no recommendation: it is of an older knee, or the run was cut off before there was one.",
        "该记录中没有推荐：它由较早版本的 knee 写成，或实验在得出推荐之前就中断了。",
    ),
    "report.answer.no_choice": ("No choice", "无法选择"),
    "report.scenario.chat": ("Live chat", "在线聊天"),
    "report.scenario.api": ("API service", "API 服务"),
    "report.scenario.offline": ("Offline work", "离线任务"),
    "report.scenario.slo": ("Within your limits", "在你给定的限制内"),
    "report.role.knee": ("knee", "拐点"),
    "report.role.chat": ("live chat", "在线聊天"),
    "report.role.api": ("API service", "API 服务"),
    "report.role.offline": ("offline work", "离线任务"),
    "report.role.slo": ("your limits", "给定限制"),
    "report.role.base": ("batch 1", "批大小 1"),
    "report.knee": ("The knee", "拐点"),
    "report.knee.found": ("Batch sizes at the knee, measured", "实测的拐点批大小"),
    "report.knee.roofline": (
        "Rows where arithmetic overtakes the read of the weights, computed",
        "计算得出的屋顶线交点（行数）：算术耗时超过读取权重之处",
    ),
    "report.verdict": ("Verdict", "判断"),
    "report.verdict.clear": ("clear", "明确"),
    "report.verdict.tied": ("tied", "并列"),
    "report.verdict.cannot_tell": ("cannot tell", "无法判断"),
    "report.effect.better": ("better", "更好"),
    "report.effect.worse": ("worse", "更差"),
    "report.effect.cannot_tell": ("cannot tell", "无法判断"),
    "report.batch_size": ("batch size {size}", "批大小 {size}"),
    "report.window": ("wait window {ms} ms", "等待窗口 {ms} ms"),
    "report.objective.goodput": ("Requests/s within the limits", "满足限制的请求/s"),
    "report.objective.output_throughput": ("Output tokens/s", "输出 token/s"),
    "report.within": ("Requests within the limits", "满足限制的请求占比"),
    "report.limits": ("Limits", "限制"),
    "report.limits_how": ("How the limits were set", "限制的来历"),
    "report.limit.ttft": ("TTFT", "TTFT"),
    "report.limit.tpot": ("TPOT", "TPOT"),
    "report.limit.e2el": ("latency", "延迟"),
    "report.tied": ("Cannot be told from it", "与之无法区分"),
    "report.against": ("Against {label}", "相比 {label}"),
    "report.change": ("change [95 % interval]", "变化 [95 % 区间]"),
    "report.commands": ("Commands to paste", "可直接粘贴的命令"),
    "report.cell": ("cell", "设置"),
    # Metrics.
    "report.metric.output_throughput": ("Output tokens/s", "输出 token/s"),
    "report.metric.request_throughput": ("Requests/s", "请求/s"),
    "report.metric.e2el_ms": ("Latency from arrival, ms", "从到达算起的延迟 ms"),
    "report.metric.ttft_ms": ("TTFT, ms", "首 token 延迟 TTFT ms"),
    "report.metric.tpot_ms": ("TPOT, ms", "每 token 时间 TPOT ms"),
    "report.metric.queue_ms": ("Queue, ms", "排队 ms"),
    "report.metric.service_ms": ("Service time, ms", "服务时间 ms"),
    "report.metric.power": ("Power, requests/s²", "功效 请求/s²"),
    "report.metric.goodput": ("Goodput, requests/s", "有效吞吐 goodput 请求/s"),
    "report.name.output_throughput": ("Output tokens/s", "输出 token/s"),
    "report.name.request_throughput": ("Requests/s", "请求/s"),
    "report.name.e2el_ms": ("Latency from arrival", "从到达算起的延迟"),
    "report.name.ttft_ms": ("Time to first token", "首 token 延迟"),
    "report.name.tpot_ms": ("Time per output token", "每 token 时间"),
    "report.name.queue_ms": ("Queue", "排队"),
    "report.name.service_ms": ("Service time", "服务时间"),
    "report.name.power": ("Power", "功效"),
    "report.name.goodput": ("Goodput", "有效吞吐"),
    "report.short.e2el": ("E2EL", "E2EL"),
    "report.short.ttft": ("TTFT", "TTFT"),
    "report.short.tpot": ("TPOT", "TPOT"),
    "report.short.itl": ("ITL", "ITL"),
    "report.short.queue": ("queue", "排队"),
    "report.short.service": ("service", "服务"),
    "report.long.e2el": ("latency from arrival (E2EL)", "从到达算起的延迟（E2EL）"),
    "report.long.ttft": ("time to first token (TTFT)", "首 token 延迟（TTFT）"),
    "report.long.tpot": ("time per output token (TPOT)", "每个输出 token 的时间（TPOT）"),
    "report.long.itl": ("gaps between tokens (ITL)", "相邻 token 的间隔（ITL）"),
    "report.long.queue": ("time in the queue", "排队时间"),
    "report.long.service": ("service time", "服务时间"),
    # Axes.
    "report.axis.e2el": ("latency from arrival, ms", "从到达算起的延迟，ms"),
    "report.axis.ttft": ("time to first token, ms", "首 token 延迟，ms"),
    "report.axis.throughput": ("output tokens/s", "输出 token/s"),
    "report.axis.batch": ("batch size", "批大小"),
    "report.axis.seconds": ("time since the trial began, s", "自试验开始的时间，s"),
    "report.axis.decode_rows": ("decode rows in the step (requests)", "该步的解码行数（请求数）"),
    "report.axis.step_ms": ("ms a step", "每步 ms"),
    "report.axis.token_ms": ("ms a token", "每个 token 的 ms"),
    "report.axis.prefill_ms": ("ms", "ms"),
    "report.axis.context": ("context, tokens a request", "上下文长度，每请求 token 数"),
    "report.axis.kv_length": ("KV length, tokens", "KV 长度，token 数"),
    "report.axis.prompt_tokens": ("prompt, tokens", "提示词，token 数"),
    "report.axis.step": ("decode step", "解码步"),
    "report.axis.log": (" (logarithmic)", "（对数坐标）"),
    "report.axis.share": ("share of the time, %", "时间占比，%"),
    "report.axis.share_of_requests": ("requests done, %", "已完成的请求，%"),
    # Figures: label for who cannot see it, caption for who can.
    "report.tradeoff.label": ("Throughput against latency", "吞吐与延迟"),
    "report.tradeoff.caption": (
        "A point is a cell, the number at it its batch size; bars are 95 % intervals over the repeats. Along a line "
        "the "
        "batch grows: a line that climbs straight up gains throughput for nothing, one that turns right pays for it "
        "with latency. Where bars overlap, do not choose between the points by this picture.",
        "每个点是一种设置，旁边的数字是批大小；误差线是多次重复的 95 % 区间。沿着线批大小递增："
        "笔直向上表示吞吐白白增加，向右弯则表示要用延迟来换。误差线重叠的点，不要凭这张图取舍。",
    ),
    "report.tradeoff.better": ("↖ better", "↖ 更好"),
    "report.tradeoff.tied": ("cannot be told from the knee", "与拐点无法区分"),
    "report.heatmap.label": (
        "Throughput and latency by batch size and wait window",
        "不同批大小与等待窗口的吞吐和延迟",
    ),
    "report.heatmap.output_throughput": ("Output tokens/s", "输出 token/s"),
    "report.heatmap.e2el_ms": ("Latency from arrival, ms", "从到达算起的延迟，ms"),
    "report.heatmap.caption": (
        "The stronger the colour, the better. Look along a row: where the windows of one batch size look alike, "
        "waiting "
        "bought nothing. Policies without a window stand at the right; a dash was not measured, a frame is the knee.",
        "颜色越浓越好。沿着一行看：同一批大小下各窗口颜色相近，说明等待没有换来收益。"
        "没有窗口的策略列在右侧；“—”表示未测，方框为拐点。",
    ),
    "report.timeline.label": ("Requests over time: {cell}", "请求的时间线：{cell}"),
    "report.timeline.panel": ("{cell}: done after {end} s{more}", "{cell}：{end} s 后全部完成{more}"),
    "report.timeline.more": (
        " (the first {shown} requests, {left_out} more are not drawn)",
        "（只画了前 {shown} 个请求，另有 {left_out} 个未画）",
    ),
    "report.timeline.caption": (
        "A line is a request of the cell's first trial, from when it was due to its last token; all panels have the "
        "same "
        "axis. Bars that begin together are a batch; thin stretches are time that a user waits in the queue.",
        "每行是该设置首次试验中的一个请求，从应到达时刻到最后一个 token；所有小图使用同一时间轴。"
        "同时开始的条属于同一批；细线是用户在队列中等待的时间。",
    ),
    "report.timeline.rest": ("The other cells: {count}", "其余设置：{count} 种"),
    "report.timeline.due": ("due", "应到达时刻"),
    "report.timeline.queued": ("queued", "排队"),
    "report.timeline.prefill": ("prefill", "预填充"),
    "report.timeline.decode": ("decode", "解码"),
    "report.step_rows.label": ("Time of a decode step against its rows", "解码步耗时与行数"),
    "report.step_rows.title": ("A decode step against its rows", "解码步耗时与行数"),
    "report.step_rows.caption": (
        "Points are medians over the decode steps of all cells, bars their middle half. While the memory's line is the "
        "higher one, a further row costs almost nothing: that is where batching pays. What lies between points and "
        "floor "
        "is what the device leaves unused.",
        "点是所有设置中解码步的中位数，误差线为中间一半。只要内存线更高，多加一行几乎不花时间：批处理正是在这里划算。"
        "点与下限之间的距离，是设备尚未用足的部分。",
    ),
    "report.step_rows.caption_plain": (
        "Points are medians over the decode steps of all cells, bars their middle half. Where the line is flat, a "
        "further "
        "row costs almost nothing: that is where batching pays.",
        "点是所有设置中解码步的中位数，误差线为中间一半。线平坦之处，多加一行几乎不花时间：批处理正是在这里划算。",
    ),
    "report.step_rows.inside": (
        "The two roofs cross at {rows} rows.",
        "两条屋顶线在 {rows} 行处相交。",
    ),
    "report.step_rows.outside": (
        "The two roofs cross at {rows} rows, beyond what ran here.",
        "两条屋顶线在 {rows} 行处相交，超出了本次实验的范围。",
    ),
    "report.step_rows.crossing": ("roofs cross: {rows} rows", "屋顶线交点：{rows} 行"),
    "report.step_rows.measured": ("measured", "实测"),
    "report.step_rows.floor": ("below the floor: no step is faster", "下限以下：任何一步都不可能更快"),
    "report.step_rows.memory_ms": ("memory: weights and KV cache read", "内存：读取权重与 KV 缓存"),
    "report.step_rows.arithmetic_ms": ("arithmetic", "算术"),
    "report.step_context.label": ("Time of a decode step against its context", "解码步耗时与上下文长度"),
    "report.step_context.title": ("A decode step against its context", "解码步耗时与上下文长度"),
    "report.step_context.caption": (
        "Medians over decode steps, by how many rows ran together. A slope is attention over the KV cache: it grows "
        "with "
        "every token that a request has behind it. The distance between two lines is what more rows cost.",
        "按同时运行的行数分组，取解码步的中位数。斜率来自对 KV 缓存的注意力计算：请求已有的 token 越多越慢。"
        "两条线之间的距离，是更多行的代价。",
    ),
    "report.step_context.rows": ("rows: {rows}", "{rows} 行"),
    "report.shares.label": ("Where the time of each cell went", "各设置的时间花在哪里"),
    "report.shares.caption": (
        "A bar is the time from the first arrival to the last token. What is beyond the floor and not prefill can be "
        "gained: by a faster device, less work around it, or a policy that holds nobody back.",
        "每条是从首个请求到达到最后一个 token 的时间。下限与预填充之外的部分都有改进余地："
        "更快的设备、更少的外围开销，或不让请求空等的策略。",
    ),
    "report.shares.floor": ("decode, the floor", "解码：下限"),
    "report.shares.over_floor": ("decode, beyond the floor", "解码：超出下限"),
    "report.shares.decode": ("decode", "解码"),
    "report.shares.prefill": ("prefill", "预填充"),
    "report.shares.host": ("engine around the device", "设备之外的引擎开销"),
    "report.shares.held_back": ("held back: somebody waited, nothing ran", "空等：有请求在等，却没有运行"),
    "report.shares.idle": ("idle: nobody was there", "空闲：没有请求"),
    "report.ecdf.label": ("Share of requests done within a time", "在一定时间内完成的请求占比"),
    "report.ecdf.caption": (
        "How many of the requests had their last (left) or first token (right) within a time; all repeats together. "
        "The "
        "further left a line, the better; where two lines cross, one is better for most and the other for the slowest.",
        "在一定时间内得到最后一个（左）或首个 token（右）的请求占比，合并所有重复。线越靠左越好；"
        "两线相交时，一种设置对多数请求更好，另一种对最慢的请求更好。",
    ),
    "report.boxes.label": (
        "Latency and time to first token of each cell's requests",
        "各设置的请求延迟与首 token 延迟",
    ),
    "report.boxes.caption": (
        "The requests of all repeats. A long line to the right means that some users wait much longer than most.",
        "合并所有重复的请求。右侧的长线表示部分用户的等待远长于多数人。",
    ),
    "report.boxes.half": ("middle half", "中间一半"),
    "report.boxes.median": ("median", "中位数"),
    "report.boxes.mean": ("mean", "均值"),
    "report.boxes.whisker": ("5 % to 95 %", "5 % 至 95 %"),
    "report.kvcache.label": ("Time of a token with the KV cache on and off", "开启与关闭 KV 缓存时每个 token 的时间"),
    "report.kvcache.times": ("Decode steps", "解码步"),
    "report.kvcache.memory": ("KV memory, MiB", "KV 内存，MiB"),
    "report.kvcache.caption": (
        "Without the cache a step runs the whole prefix again, so it grows with the context; with it a step stays "
        "nearly "
        "flat. The price stands at the right: memory that grows with every token.",
        "没有缓存时每一步都要重新计算整个前缀，因此随上下文变慢；有缓存时几乎不变。代价见右图：内存随每个 token 增长。",
    ),
    "report.kvcache.crossing": ("pays from {tokens} tokens", "{tokens} 个 token 起划算"),
    "report.kvcache.on": ("KV cache on", "开启 KV 缓存"),
    "report.kvcache.off": ("KV cache off", "关闭 KV 缓存"),
    "report.kvcache.pays": ("The KV cache pays", "KV 缓存何时划算"),
    "report.kvcache.from": ("from a context of {tokens} tokens on", "上下文达到 {tokens} 个 token 起"),
    "report.kvcache.never": ("at none of these lengths", "在所测长度上都不划算"),
    "report.kvcache.each": ("It takes, a token", "每个 token 占用"),
    "report.kvcache.ratio": (
        "Without it a prompt of {tokens} tokens takes",
        "没有它，{tokens} 个 token 的提示词耗时",
    ),
    "report.kvcache.times_as_long": ("{ratio} times as long", "为有缓存时的 {ratio} 倍"),
    "report.baseline.label": ("Cold and warm prefill, and every decode step", "冷、热预填充与每个解码步"),
    "report.baseline.caption": (
        "Cold is the first forward pass after loading and happens once; what a request costs is the warm one. Decode "
        "steps "
        "that stand apart from their median are the machine's doing, not the model's.",
        "“冷”是加载后的首次前向，只发生一次；请求的真实成本是“热”。明显偏离中位数的解码步来自机器，而不是模型。",
    ),
    "report.baseline.prefill": ("Prefill", "预填充"),
    "report.baseline.decode": ("Decode steps", "解码步"),
    "report.baseline.cold": ("cold", "冷"),
    "report.baseline.warm": ("warm", "热"),
    "report.baseline.run": ("a warm prefill", "一次热预填充"),
    "report.baseline.step": ("a decode step", "一个解码步"),
    "report.baseline.median": ("their median", "解码步的中位数"),
    "report.baseline.prefill_cold": ("Prefill, cold", "预填充（冷）"),
    "report.baseline.prefill_warm": ("Prefill, warm", "预填充（热）"),
    "report.baseline.per_token": ("Prefill, warm, a token", "预填充（热），每 token"),
    "report.baseline.decode_step": ("A decode step", "一个解码步"),
    "report.inspect.label": ("Decode steps with the KV cache on and off", "开启与关闭 KV 缓存的解码步"),
    "report.inspect.caption": (
        "The same steps twice: with the cache a step runs one token, without it the whole prefix. The distance is "
        "what the "
        "cache saves at this length.",
        "同样的步骤做两遍：有缓存时每步只算一个 token，没有缓存时要重算整个前缀。"
        "两者之差就是缓存在该长度上省下的时间。",
    ),
    "report.inspect.prefill": ("Prefill", "预填充"),
    "report.inspect.prefill_off": ("Prefill, KV cache off", "预填充，关闭 KV 缓存"),
    "report.inspect.step_on": ("A decode step, on average", "解码步平均"),
    "report.inspect.step_off": ("A decode step without KV cache", "无 KV 缓存的解码步"),
    "report.inspect.same": ("All ways gave the same tokens", "各种方式的 token 一致"),
    "report.inspect.matches": ("Same tokens as the engine", "与引擎的 token 一致"),
    "report.inspect.same_off": ("Same tokens without KV cache", "与关闭 KV 缓存的 token 一致"),
    "report.inspect.ms_on": ("ms", "ms"),
    "report.inspect.ms_off": ("ms, no KV cache", "ms，无 KV 缓存"),
    "report.tokens": ("Prompt tokens → output tokens", "提示词 token → 输出 token"),
    # Why.
    "report.overhead": (
        "Recording cost {us} µs a step, {share} % of a decode step of {ms} ms.",
        "记录数据每步耗时 {us} µs，占一个 {ms} ms 解码步的 {share} %。",
    ),
    "report.left_out": ("Left out for want of time", "因时间预算未做的部分"),
    "report.claims.note": (
        "In the small pictures the upright line is no change, the left end half, the right end double, an arrow more "
        "than that; the thick part is the 95 % interval. Where it crosses the line, the change cannot be told from "
        "none.",
        "小图中竖线表示没有变化，左端为一半，右端为两倍，箭头表示超出范围；粗段是 95 % 区间。"
        "粗段跨过竖线时，无法断定有变化。",
    ),
    "report.claims.untold": ("Not measured in this run: {count}", "本次实验未测量：{count} 条"),
    "report.claim.supported": ("supported", "成立"),
    "report.claim.refuted": ("refuted", "不成立"),
    "report.claim.cannot_tell": ("cannot tell", "无法判断"),
    "report.claim.not_measured": ("not measured", "未测量"),
    "report.bound.memory": ("memory", "内存"),
    "report.bound.arithmetic": ("arithmetic", "算术"),
    # The environment.
    "report.env.hardware": ("Hardware", "硬件"),
    "report.env.model": ("Model", "模型"),
    "report.env.options": ("Options", "选项"),
    "report.env.commit": ("git commit", "git 提交"),
    "report.env.dirty": ("(with changes)", "（有未提交的修改）"),
    "report.env.platform": ("Platform", "平台"),
    "report.env.packages": ("Packages", "软件包"),
    "report.env.source": ("Source", "来源"),
    "report.env.architecture": ("Architecture", "架构"),
    "report.env.parameters": ("Parameters", "参数量"),
    "report.env.device": ("Device", "设备"),
    "report.env.threads": ("Threads", "线程数"),
    "report.env.requests": ("Requests", "请求数"),
    "report.env.prompt_tokens": ("Prompt tokens each", "每个提示词的 token 数"),
    "report.env.new_tokens": ("New tokens each", "每个请求生成的 token 数"),
    "report.env.arrival": ("Arrival", "到达方式"),
    "report.env.seed": ("Seed", "随机种子"),
    "report.env.due": ("Due at, s", "应到达时刻，s"),
    "report.env.prompts": ("Prompts: {count}", "提示词：{count} 条"),
    # Tables.
    "report.table.totals": ("Totals, batches and tokens of each cell", "各设置的总量、批与 token"),
    "report.table.intervals": ("Every metric with its 95 % interval", "各项指标及其 95 % 区间"),
    "report.table.intervals_note": (
        "Medians over the repeats; latencies are means over a trial's requests. No brackets: too few repeats for an "
        "interval.",
        "数值为多次重复的中位数；延迟为一次试验中各请求的均值。没有方括号：重复次数太少，无法给出区间。",
    ),
    "report.table.percentiles": ("Percentiles, ms: {names}", "百分位数，ms：{names}"),
    "report.table.missing": (
        "A dash: no request has such a latency, or there are too few of them for that percentile.",
        "“—”：没有请求有该项延迟，或请求太少，无法给出该百分位数。",
    ),
    "report.table.repeats": ("Every repeat", "每次重复"),
    "report.table.repeats_note": (
        "“stands apart” names the metrics in which a repeat is far from the others of its cell; it counts all the "
        "same.",
        "“离群”列出该次重复明显偏离同组其他重复的指标；它照常计入结果。",
    ),
    "report.table.tradeoff": ("Every cell against the first", "各设置与第一个的比较"),
    "report.table.tradeoff_note": (
        "Efficiency is throughput gained per service time paid. In brackets: 95 % intervals, pair by pair within the "
        "rounds.",
        "效率 = 吞吐增幅 / 服务时间增幅。方括号内为 95 % 区间，按同一轮内的配对计算。",
    ),
    "report.table.step_times": ("Decode steps by their rows, ms", "按行数统计的解码步，ms"),
    "report.table.explained": (
        "The same in numbers, and what else is known of each cell",
        "对应数据与各设置的其他信息",
    ),
    "report.table.machine": ("What the floors are computed from", "下限的计算依据"),
    "report.table.trials": ("Every trial: when it ran, and what the machine was like", "每次试验：运行时间与机器状态"),
    "report.table.trials_note": (
        "The pulse is a fixed piece of arithmetic, timed before and after the trial: a longer one tells of a machine "
        "that "
        "was slowed down. Void: the load generator was late, so the trial counts nowhere.",
        "“脉冲”是一段固定的计算，在试验前后各计时一次：变长说明机器变慢了。作废：负载发生器不够准时，"
        "该次试验不计入任何结果。",
    ),
    "report.column.total": ("total s", "总时间 s"),
    "report.column.output_tokens": ("output tokens", "输出 token"),
    "report.column.repeats": ("repeats", "重复次数"),
    "report.column.slots": ("slots used", "槽位利用率"),
    "report.column.mean_batch": ("mean batch", "平均批大小"),
    "report.column.failed": ("failed", "失败数"),
    "report.column.window_idle": ("window could not matter", "窗口不可能有影响"),
    "report.column.tokens_hash": ("tokens’ hash", "token 哈希"),
    "report.column.repeat": ("repeat", "重复"),
    "report.column.outlier": ("stands apart", "离群"),
    "report.column.throughput_change": ("throughput", "吞吐"),
    "report.column.service_change": ("service time", "服务时间"),
    "report.column.e2el_change": ("latency", "延迟"),
    "report.column.efficiency": ("efficiency", "效率"),
    "report.column.rows": ("rows", "行数"),
    "report.column.steps": ("steps", "步数"),
    "report.column.context": ("mean context", "平均上下文"),
    "report.column.median": ("median", "中位数"),
    "report.column.quartiles": ("middle half", "中间一半"),
    "report.column.floor": ("floor", "下限"),
    "report.column.memory": ("memory", "内存"),
    "report.column.arithmetic": ("arithmetic", "算术"),
    "report.column.bound": ("bound by", "受限于"),
    "report.column.started": ("started", "开始时间"),
    "report.column.seconds": ("seconds in all", "总秒数"),
    "report.column.load_ms": ("load ms", "加载 ms"),
    "report.column.warm_up": ("warm-up steps, first → last ms", "预热步 首 → 末 ms"),
    "report.column.delay": ("generator’s delay ms", "发生器延迟 ms"),
    "report.column.void": ("void", "作废"),
    "report.column.pulse": ("pulse ms", "脉冲 ms"),
    "report.column.other_load": ("other load, cores", "其他负载，核"),
    "report.column.frequency": ("MHz", "MHz"),
    "report.column.temperature": ("°C", "°C"),
    "report.column.swap": ("swap GiB", "交换空间 GiB"),
    "report.column.clock_gap": ("clock gap s", "时钟偏差 s"),
    "report.column.trace": ("recording µs/step", "记录 µs/步"),
    "report.column.errors": ("errors", "错误"),
    "report.explained.decode_rows": ("mean decode rows", "平均解码行数"),
    "report.explained.decode_ms": ("decode step ms", "解码步 ms"),
    "report.explained.floor": ("floor ms", "下限 ms"),
    "report.explained.near_floor": ("floor / device time", "下限 / 设备时间"),
    "report.explained.bound": ("bound by", "受限于"),
    "report.explained.empty_slots": ("empty slots", "空槽位"),
    "report.explained.interference": ("prompts slow a token by ms", "预填充使每 token 变慢 ms"),
    "report.explained.floor_share": ("floor %", "下限 %"),
    "report.explained.over_floor": ("beyond the floor %", "超出下限 %"),
    "report.explained.decode": ("decode %", "解码 %"),
    "report.explained.prefill": ("prefill %", "预填充 %"),
    "report.explained.host": ("engine %", "引擎 %"),
    "report.explained.held_back": ("held back %", "空等 %"),
    "report.explained.idle": ("idle %", "空闲 %"),
    "report.machine.arithmetic": ("Arithmetic, {dtype}", "算力，{dtype}"),
    "report.machine.how": ("How both were measured", "两者的测量方式"),
    "report.machine.solo": (
        "One request alone ({prompt} prompt tokens, {tokens} new)",
        "单独一个请求（提示词 {prompt} 个 token，生成 {tokens} 个）",
    ),
    "report.cost.flops_per_token": ("FLOPs a token", "每 token 的 FLOPs"),
    "report.cost.flops_per_output": ("FLOPs for the logits of a token", "每 token 的 logits 的 FLOPs"),
    "report.cost.flops_per_pair": ("FLOPs a pair of query and key", "每对查询与键的 FLOPs"),
    "report.cost.weight_bytes": ("Bytes of weights, once a step", "权重字节数，每步一次"),
    "report.cost.weight_bytes_per_token": ("Bytes of weights a token", "每 token 读取的权重字节数"),
    "report.cost.kv_bytes_per_token": ("Bytes written to the KV cache, a token", "每 token 写入 KV 缓存的字节数"),
    "report.cost.kv_bytes_per_context": (
        "Bytes read from the KV cache, a token of context",
        "每上下文 token 读取的 KV 字节数",
    ),
    # The log.
    "report.log.title": ("Experiment log", "实验日志"),
    "report.log.folder": ("Folder", "文件夹"),
    "report.log.empty": ("There are no runs here.", "这里没有实验记录。"),
    "report.log.unreadable": ("Runs that cannot be read", "无法读取的实验"),
}

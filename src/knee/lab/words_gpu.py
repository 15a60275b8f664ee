"""The words about GPUs: what was seen of them, why something was not, how fast they are. See `messages.py`."""

from __future__ import annotations

from collections.abc import Mapping

WORDS: Mapping[str, tuple[str, str]] = {
    "gpu.utilization": ("GPU utilization, mean", "GPU 利用率，均值"),
    "gpu.memory": ("GPU memory in use, most", "GPU 显存占用，最大值"),
    "gpu.power": ("GPU power, mean", "GPU 功率，均值"),
    "gpu.energy": ("GPU energy", "GPU 能耗"),
    "gpu.per_token": ("GPU energy an output token", "GPU 能耗，平均每个输出 token"),
    "gpu.clock": ("GPU clock (SM), mean", "GPU 频率（SM），均值"),
    "gpu.temperature": ("GPU temperature, highest", "GPU 温度，最高值"),
    "gpu.throttled": ("GPU clock held down", "GPU 降频"),
    "gpu.title": ("What the GPU did", "GPU 的状态"),
    "gpu.column.utilization": ("GPU busy", "GPU 利用率"),
    "gpu.column.memory": ("memory GiB", "显存 GiB"),
    "gpu.column.power": ("power W", "功率 W"),
    "gpu.column.energy": ("energy J", "能耗 J"),
    "gpu.column.per_token": ("J/token", "J/token"),
    "gpu.column.clock": ("clock MHz", "频率 MHz"),
    "gpu.column.temperature": ("GPU °C", "GPU °C"),
    "gpu.column.throttled": ("held down", "降频"),
    "gpu.about": (
        "Of the whole card, medians over the repeats; memory and temperature are the highest. J/token is the card's "
        "energy, what it takes when idle included, over all tokens given to requests.",
        "均为整张卡的数据，取多次重复的中位数；显存与温度取最大值。"
        "J/token = 整张卡的能耗（含空闲功耗）/ 交付给请求的 token 总数。",
    ),
    "table.gpu": ("GPU\n%", "GPU\n%"),
    "table.joules": ("J/token", "J/token"),
    # Why something is null. Records keep these sentences.
    "note.gpu_unseen": (
        "GPU: nothing was seen of it, NVML cannot be used here ({error})",
        "GPU：没有任何数据，此处无法使用 NVML（{error}）",
    ),
    "note.gpu_utilization": ("GPU utilization: NVML does not say ({error})", "GPU 利用率：NVML 未提供（{error}）"),
    "note.gpu_memory": ("GPU memory: NVML does not say ({error})", "GPU 显存：NVML 未提供（{error}）"),
    "note.gpu_power": ("GPU power: NVML does not say ({error})", "GPU 功率：NVML 未提供（{error}）"),
    "note.gpu_energy": ("GPU energy: NVML does not say ({error})", "GPU 能耗：NVML 未提供（{error}）"),
    "note.gpu_clock": ("GPU clock: NVML does not say ({error})", "GPU 频率：NVML 未提供（{error}）"),
    "note.gpu_temperature": ("GPU temperature: NVML does not say ({error})", "GPU 温度：NVML 未提供（{error}）"),
    "note.gpu_throttle": (
        "Whether the GPU held its clock down: NVML does not say ({error})",
        "GPU 是否降频：NVML 未提供（{error}）",
    ),
    "note.gpu_short": (
        "GPU utilization, power and energy are null where the requests took less than {seconds} s: the sensors are not "
        "that fast; more requests or longer answers take longer",
        "请求总时长不足 {seconds} 秒时，GPU 利用率、功率与能耗为空：传感器没有那么快；请增加请求数或生成长度",
    ),
    "note.gpu_energy_sampled": (
        "GPU energy: the card does not count it; it was added up from power, sampled every 50 ms",
        "GPU 能耗：该显卡没有能耗计数器，由每 50 ms 采样的功率累加得到",
    ),
    # What makes numbers less trustworthy.
    "warning.device_fallback": ("The device did not run as intended: {what}.", "设备未按预期方式运行：{what}。"),
    "advice.device_fallback": (
        "The numbers are those of what ran, and may be better once this is mended; do not compare them with runs that "
        "have no such warning.",
        "这些数字反映的是实际运行的方式，修复后可能更好；请勿与没有此警告的实验比较。",
    ),
    "warning.throttled_gpu": (
        "The GPU held its clock down in {count} of {of} trials ({reasons}).",
        "{of} 次试验中有 {count} 次 GPU 降频（{reasons}）。",
    ),
    "advice.throttled_gpu": (
        "Compare only with runs under the same power limit and cooling; nvidia-smi -q -d "
        "PERFORMANCE,POWER,TEMPERATURE says more.",
        "只应与功率上限和散热条件相同的实验比较；详情见 nvidia-smi -q -d PERFORMANCE,POWER,TEMPERATURE。",
    ),
    # knee doctor.
    "doctor.gpu_speed": ("GPU speeds", "GPU 速度"),
    "doctor.gpu_not_measured": ("not measured: {reason}", "未测量：{reason}"),
    "doctor.gpu_read": ("GPU read bandwidth", "GPU 读带宽"),
    "doctor.gpu_copy": ("GPU copy bandwidth (read + write)", "GPU 拷贝带宽（读 + 写）"),
    "doctor.gpu_float32": ("GPU float32 arithmetic", "GPU float32 算力"),
    "doctor.gpu_bfloat16": ("GPU bfloat16 arithmetic", "GPU bfloat16 算力"),
    "doctor.gpu_float16": ("GPU float16 arithmetic", "GPU float16 算力"),
}

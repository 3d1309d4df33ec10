"""`sweep.csv`: one line a row, for spreadsheets and programs."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from typing import Any

_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def csv_text(data: Mapping[str, Any]) -> str:
    """The sweep as CSV; seconds, bytes and dB as they were measured, empty where there is nothing."""
    lines = [_line(row, data["varied"]) for row in data["rows"]]
    heading = list(lines[0]) if lines else ["cell", "status"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(plain, heading))
    writer.writerows([plain(value) for value in line.values()] for line in lines)
    return text.getvalue()


def plain(value: Any) -> Any:
    """A value that no spreadsheet takes for a formula, on one line: an apostrophe comes before what begins like one."""
    if not isinstance(value, str):
        return value
    text = " / ".join(line.strip() for line in value.splitlines() if line.strip())
    harmless = not value.startswith(_FORMULA) or _NUMBER.fullmatch(value)
    return text if harmless else f"'{text}"


def _line(row: Mapping[str, Any], varied: list[str]) -> dict[str, Any]:
    latency, quality = row["latency_s"] or {}, row["quality"] or {}
    memory, speedup = row["peak_memory_bytes"] or {}, row["speedup"] or {}
    low, high = latency.get("ci95") or (None, None)
    slowest, fastest = speedup.get("ci95") or (None, None)
    return {
        "cell": row["cell"],
        "place": row["place"],
        **{key: row["values"].get(key) for key in varied},
        "status": row["status"],
        "same_as": row["same_as"],
        "latency_s_median": latency.get("median"),
        "latency_s_p10": latency.get("p10"),
        "latency_s_p90": latency.get("p90"),
        "latency_s_ci95_low": low,
        "latency_s_ci95_high": high,
        "step_latency_s": row["step_latency_s"],
        "throughput_images_per_s": row["throughput_images_per_s"],
        "speedup": speedup.get("ratio"),
        "speedup_ci95_low": slowest,
        "speedup_ci95_high": fastest,
        "load_s": row["load_s"],
        "first_call_s": row["first_call_s"],
        "compile_s": row["compile_s"],
        "compile_cache": row["compile_cache"],
        "cell_s": row["seconds"],
        "peak_memory_device_allocated_bytes": memory.get("device_allocated"),
        "peak_memory_device_reserved_bytes": memory.get("device_reserved"),
        "peak_memory_host_bytes": memory.get("host"),
        "identical": quality.get("identical"),
        "psnr_db": quality.get("psnr_db"),
        "ssim": quality.get("ssim"),
        "ms_ssim": quality.get("ms_ssim"),
        "max_abs_difference": quality.get("max_abs_difference"),
        "pareto": row["pareto"],
        "reason": row["reason"],
        "instead": row["instead"],
        "log": row["log"],
        "report": row["report"],
        "report_sha256": row["report_sha256"],
        "finished_at": row["finished_at"],
        "command": row["command"],
        "disturbed": row.get("disturbed"),
    }

"""Describe the machine that the figures come from."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """Return processor, memory, kernel, time and load, as they are now."""
    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":", 1)[1].strip() for line in cpuinfo if "model name" in line), platform.machine())
    memory_kb = int(Path("/proc/meminfo").read_text().split("MemTotal:")[1].split()[0])
    return {
        "cpu": model,
        "cpus": os.cpu_count(),
        "memory_gib": round(memory_kb / (1 << 20), 1),
        "kernel": platform.release(),
        "load": round(os.getloadavg()[0], 2),
        "utc": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
        "user": "root" if os.geteuid() == 0 else "ordinary",
    }

"""Run all timings and name the machine: what ``make bench`` calls. docs/speed.md says what the figures mean.

    python benchmarks/run.py [NAME ...]
"""
from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
TIMINGS = {
    "zbuffer": ["zbuffer.py"], "completion": ["completion.py"], "start": ["start.py"], "alignment": ["alignment.py"],
    "training": ["training.py"], "scaling": ["scaling.py"], "memory": ["memory.py"],
    "synthetic": ["synthetic.py", "--count", "60"],
}


def machine() -> str:
    """Processor, number of cores, and versions."""
    import torch

    name = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        lines = [line.split(":", 1)[1].strip() for line in information.read_text().splitlines() if "model name" in line]
        name = lines[0] if lines else name
    return f"{name}, {os.cpu_count()} cores; Python {platform.python_version()}, PyTorch {torch.__version__}"


def main() -> int:
    """Runs the named timings, or all; the exit status is 1 if one failed."""
    print(machine(), flush=True)
    failed = 0
    for name in sys.argv[1:] or TIMINGS:
        if name not in TIMINGS:
            print(f"error: there is no timing {name}; there are {', '.join(TIMINGS)}", file=sys.stderr)
            return 1
        print(f"\n== {name}: python benchmarks/{' '.join(TIMINGS[name])}", flush=True)
        script, *options = TIMINGS[name]
        failed += subprocess.run([sys.executable, str(HERE / script), *options], cwd=HERE.parent).returncode != 0
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

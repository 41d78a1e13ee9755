"""Prints, for every published network, the worst deviation from its golden outputs and what is allowed.

Run from the repository: ``python benchmarks/parity.py``
"""
from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import golden_fill  # noqa: E402  (needs the two folders above)


def main() -> int:
    """Prints the table; the exit status is 1 if a network is further off than allowed."""
    print(f"{'network':28s} {'output':12s} {'worst error':>12s} {'tolerance':>10s} {'share':>6s}")
    failed = 0
    for name in golden_fill.LAYOUT:
        found = golden_fill.errors(name, golden_fill.network(name))
        key = max(found, key=lambda key: found[key][0] / found[key][1])
        error, tolerance = found[key]
        failed += error > tolerance
        print(f"{name:28s} {key.split('/', 1)[1]:12s} {error:12.2e} {tolerance:10.2e} {error / tolerance:6.1%}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

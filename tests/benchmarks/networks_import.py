"""Seconds that `import lightning_depth.networks` adds to `import timm`, each in a fresh process.

Run from the checkout: ``python -m tests.benchmarks.networks_import``
"""

from __future__ import annotations

import statistics
import subprocess
import sys

CODE = """
import time
import timm
start = time.perf_counter()
import lightning_depth.networks
print(time.perf_counter() - start)
"""


def main() -> None:
    """Print the median of nine processes and their spread."""
    runs = [
        float(subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True).stdout)
        for _ in range(9)
    ]
    print(f"median {statistics.median(runs):.3f} s, {min(runs):.3f} to {max(runs):.3f} s")


if __name__ == "__main__":
    main()

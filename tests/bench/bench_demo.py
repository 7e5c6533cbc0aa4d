"""Wall time of `toylab demo` in a fresh directory, and where it goes.

    python tests/bench/bench_demo.py [--seed 0]

The two things compared are training itself and everything else: from the "seconds" in run.json (train, measure, save),
and the rest of the wall time (start, measures over all checkpoints afterwards, the figure).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "toylab", "demo", "--seed", str(args.seed), "--runs", folder]
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wall = time.perf_counter() - start
        info = json.loads((Path(folder) / "demo" / f"seed={args.seed}" / "run.json").read_text())
    spent = info["seconds"]
    after = wall - sum(spent.values())
    overhead = 100 * (spent["measure"] + spent["save"]) / sum(spent.values())
    print(
        f"{os.cpu_count()} cores, {info['threads']} threads, torch {info['packages']['torch']}; step {info['step']:,}"
    )
    print("| demo | wall | training | measuring | saving | measuring + saving / loop | start, run.map and figure |")
    print("|---|---|---|---|---|---|---|")
    print(
        f"| seed {args.seed} | {wall:.0f} s | {spent['train']:.0f} s | {spent['measure']:.1f} s "
        f"| {spent['save']:.1f} s | {overhead:.0f} % | {after:.1f} s ({100 * after / wall:.0f} % of wall) |"
    )


if __name__ == "__main__":
    main()

"""Othello: random games per second on one core, and agreement with the plain engine of the tests on many positions.

    bench_othello.py                     games per second by board and batch, beside the plain engine
    bench_othello.py --check 1000000     compare that many positions (some minutes), once per change of the rules

A check writes what it found, with its command, processor seconds and machine, to othello_check.json beside this file;
it is committed. Times are processor seconds, so that a busy machine gives nearly the same answer as a quiet one.
"""

import argparse
import json
import platform
import sys
import time
from pathlib import Path

import numpy as np

from toylab.tasks import othello_engine as engine

RECORD = Path(__file__).with_name("othello_check.json")
sys.path.insert(0, str(Path(__file__).parent.parent))


def seconds(run):
    start = time.process_time()
    run()
    return time.process_time() - start


def plain_games(n, count):
    from test_othello import Plain

    generator = np.random.default_rng(0)
    for _ in range(count):
        game = Plain(n)
        while legal := game.legal():
            game.play(legal[generator.integers(len(legal))])


def speed():
    print("| board | batch | games per second | plain Python | ratio |")
    print("|:--|--:|--:|--:|--:|")
    for n in (8, 6, 4):
        plain = 20 / min(seconds(lambda n=n: plain_games(n, 20)) for _ in range(2))
        for batch in (2048, 8192, 16384, 32768):
            engine.BATCH = batch
            rate = 65536 / min(seconds(lambda n=n: engine.random_games(n, 0, 0, 65536)) for _ in range(3))
            print(f"| {n} x {n} | {batch:,} | {rate:,.0f} | {plain:,.0f} | {rate / plain:,.0f}x |", flush=True)


def machine():
    """The kind of processor, as Linux names it, or else as Python does."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return (named or [platform.processor() or platform.machine()])[0]


def check(wanted):
    """Every board, flip, legal move, pass, side to move and end of random games, a third of them on each board."""
    from test_othello import disagreements

    boards, start = {}, time.process_time()
    for n in (4, 6, 8):
        compared = wrong = games = passes = early = 0
        while compared < wanted / 3:
            moves = engine.random_games(n, 2026, games, 200)
            found = disagreements(n, moves)
            compared, wrong, games = compared + found[0], wrong + int(found[1]), games + len(moves)
            passes += int(engine.replay(n, moves).passed.sum())
            early += int((moves[:, -1] == engine.NONE).sum())
        boards[f"{n} x {n}"] = {
            "positions": compared,
            "games": games,
            "passes": passes,
            "games that end early": early,
            "differences": wrong,
        }
        print(f"{n} x {n}: {compared:,} positions of {games:,} games compared, {wrong} differ", flush=True)
    record = {
        "command": f"python tests/bench/bench_othello.py --check {wanted}",
        "compared": "boards, flips, legal moves, passes, side to move, ends; the bit engine against a per-square one",
        "positions": sum(board["positions"] for board in boards.values()),
        "differences": sum(board["differences"] for board in boards.values()),
        "boards": boards,
        "processor seconds": round(time.process_time() - start),
        "machine": f"one core of {machine()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
    }
    RECORD.write_text(json.dumps(record, indent=2) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", type=int, default=0)
    options = parser.parse_args()
    check(options.check) if options.check else speed()


if __name__ == "__main__":
    main()

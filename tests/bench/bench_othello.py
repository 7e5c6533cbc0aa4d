"""Othello: random games per second on one core, and agreement with the plain engine of the tests on many positions.

    bench_othello.py                     games per second by board and batch, beside the plain engine
    bench_othello.py --check 1000000     compare that many positions (some minutes), once per change of the rules

Times are processor seconds, so that a busy machine gives nearly the same answer as a quiet one.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np

from toylab.tasks import othello_engine as engine

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


def check(wanted):
    from test_othello import disagreements

    for n in (4, 6, 8):
        compared = wrong = first = 0
        while compared < wanted / 3:
            found = disagreements(n, engine.random_games(n, 2026, first, 200))
            compared, wrong, first = compared + found[0], wrong + found[1], first + 200
        print(f"{n} x {n}: {compared:,} positions of {first:,} games compared, {wrong} differ", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", type=int, default=0)
    options = parser.parse_args()
    check(options.check) if options.check else speed()


if __name__ == "__main__":
    main()

"""How long it takes to compile the whole RASP library and check every program.

    python tests/bench/bench_rasp.py          # cold: from the import of torch on; each program on 20 inputs
    python tests/bench/bench_rasp.py --all    # also every input over 4 tokens and 6 positions, in both precisions

Target: under 5 s cold (tracr takes 45 s cold and 0.8 s warm for 24 programs, JAX start-up included; see the reference
sheet, section 13).
"""

import sys
import time

START = time.perf_counter()

import torch  # noqa: E402 (the clock starts first: the imports are part of "cold")

from toylab.data import generator  # noqa: E402
from toylab.rasp.programs import PROGRAMS, ProgramTask  # noqa: E402

IMPORTED = time.perf_counter()
N_INPUTS = 20


def inputs(task: ProgramTask, n: int) -> list[tuple]:
    rows = task.rows()
    return [rows[i] for i in torch.randperm(len(rows), generator=generator(0, "rows"))[:n].tolist()]


def compile_library() -> tuple[float, float]:
    """(seconds, largest error of a logit) over all programs."""
    start, worst = time.perf_counter(), 0.0
    for name, program in PROGRAMS.items():
        task = ProgramTask(name, program.vocab, program.max_len, 0.5)
        worst = max(worst, task.compile().error(inputs(task, N_INPUTS)))
    return time.perf_counter() - start, worst


def every_input(name: str, dtype: str) -> tuple[int, float]:
    vocab = PROGRAMS[name].vocab
    task = ProgramTask(name, (*vocab, *"uvw"[: max(0, 4 - len(vocab))]), 6, 0.5)
    rows = task.rows()
    return len(rows), task.compile(dtype).error(rows)


def main() -> None:
    torch.set_num_threads(1)
    cold, worst = compile_library()
    warm, _ = compile_library()
    print("| what | seconds |\n|---|---|")
    print(f"| importing torch and toylab | {IMPORTED - START:.2f} |")
    print(f"| {len(PROGRAMS)} programs compiled, {N_INPUTS} inputs each, first time | {cold:.2f} |")
    print(f"| the same again | {warm:.2f} |")
    print(f"\nlargest error of a logit: {worst:.1e}; cold in all {IMPORTED - START + cold:.2f} s (target 5)")
    if "--all" in sys.argv:
        print("\n| program | inputs | float64 | float32 |\n|---|---|---|---|")
        for name in PROGRAMS:
            n, exact = every_input(name, "float64")
            print(f"| {name} | {n:,} | {exact:.1e} | {every_input(name, 'float32')[1]:.1e} |", flush=True)


if __name__ == "__main__":
    main()

"""toylab demo: the main job from nothing to the picture."""

from __future__ import annotations

import time
from argparse import Namespace

from toylab.cli.compose import compose
from toylab.cli.figure import draw_figure
from toylab.cli.measure import named_measure
from toylab.cli.train import split_config, summary, train_config
from toylab.rundir import RunDir


def run(args: Namespace) -> int:
    overrides = ["experiment=demo", f"seed={args.seed}", f"runs={args.runs}", f"overwrite={args.fresh}"]
    config = compose(overrides)
    _, path, _ = split_config(dict(config))
    directory = RunDir(path)
    start = time.perf_counter()
    again = directory.exists() and directory.info()["status"] == "finished" and not args.fresh
    if not again:
        status = train_config(config, f"toylab demo --seed {args.seed}", next_steps=False)
        if status:
            return status
    from toylab.runs import Run

    done = Run.open(path)
    if again:
        print(f"{path} is already there (--fresh starts over)\n{summary(done)}")
    for name in ("loss", "norms", "logits"):
        done.map(named_measure(name), progress=True)
    picture = draw_figure("progress", [path], path / "progress.png")
    memorised, general = events(done)
    print(
        f"figure: {picture}\n"
        f"look at: train accuracy passes 99 % at step {memorised}, test accuracy at step {general}: between them the\n"
        f"         network has memorised the training pairs and does not yet add. Loss on held-out pairs first rises,\n"
        f"         then collapses; the sum of squared weights falls while the general solution replaces the table.\n"
        f"         {len(done.steps)} checkpoints, all measured; {time.perf_counter() - start:.0f} s.\n"
        f"next:    toylab verify {path}     replay parts of it, bit for bit\n"
        f"         toylab demo --seed 1     another seed: when does it grok?\n"
        f"         toylab train experiment=nanda2023     the paper's own setting\n"
        f"         python -c \"import toylab; print(toylab.Run.open('{path}').final.run_with_cache()[1])\""
    )
    return 0


def events(done) -> tuple[int | None, int | None]:
    """First evaluations with train and with test accuracy of at least 99 %."""
    table = done.metrics()
    found = []
    for name in ("train_accuracy", "test_accuracy"):
        reached = table.step[table[name] >= 0.99]
        found.append(int(reached[0]) if len(reached) else None)
    return found[0], found[1]

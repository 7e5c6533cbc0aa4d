"""Train the map of `toylab paper mu` as ensembles, one for each width and share, where that command looks for it.

    python paper_repro/mu/train_map.py [--runs runs] [--seeds 2]

Cells of one ensemble differ in weight decay, first weights and seed; shares may differ too, but the smaller training
sets would be padded to the largest. Ctrl-C saves; the same command goes on. Afterwards `toylab paper mu` finds the runs
finished and only measures them.
"""

from __future__ import annotations

import argparse

from toylab.cli.paper import paper_module, plan, run_sets
from toylab.durable import Interrupted
from toylab.ensemble import train_ensemble


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", default="runs")
    parser.add_argument("--seeds", type=int, default=None)
    options = parser.parse_args()
    sets = [s for s in run_sets(paper_module("mu"), False, options.seeds) if s.key == "map"]
    left = [p for p in plan(sets, options.runs) if p.left]
    shapes = [(p.experiment.model.d_model, p.experiment.task.frac_train) for p in left]
    for shape in sorted(set(shapes)):
        members = [p for p, s in zip(left, shapes, strict=True) if s == shape]
        try:
            train_ensemble([p.experiment for p in members], [p.path for p in members])
        except Interrupted as stopped:
            raise SystemExit(str(stopped)) from None


if __name__ == "__main__":
    main()

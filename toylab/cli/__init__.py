"""The command line: thin. Parses, composes the config, calls. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

COMMANDS = {
    "demo": (
        "train modular addition until it groks, measure it, draw it",
        """Trains a one-layer transformer on a + b mod 113 (30 % of all pairs) until it answers the other 70 % too,
keeps 150 or more checkpoints, measures each of them and draws the picture. About a minute on 2 cores. Called
again, it finds the finished run and redraws at once.

  toylab demo                 the run with seed 0
  toylab demo --seed 3        another one
  toylab demo --fresh         start over""",
    ),
    "train": (
        "train any experiment; an interrupted run goes on",
        """Every setting is a line of conf/train.yaml and the files it names; `toylab list` shows them.

  toylab train experiment=nanda2023                       a ready-made experiment
  toylab train experiment=demo optim.lr=3e-3 name=faster  change settings (a new name keeps runs apart)
  toylab train task.operation='x*y' name=times            another task
  toylab train -m experiment=demo seed=0,1,2              a sweep; give it again to finish what is missing
  toylab train -m experiment=demo optim.weight_decay=1,2 'name=wd/${optim.weight_decay}'
  toylab train --ensemble experiment=demo seed=0,1,2 optim.lr=1e-3,2e-3    all six as one stacked program

The run goes to runs/<name>/seed=<seed>. Ctrl-C saves and says how to go on; the same command resumes, and the resumed
run equals the uninterrupted one bit for bit on CPU. A finished run is never touched unless overwrite=true is given.
Members of an ensemble may differ in seed, learning rate, weight decay, train fraction, initial scale; each is saved as
an ordinary run. It pays for small models and on accelerators.
Sweeps use Hydra: -m hydra/launcher=joblib runs cells in parallel, hydra/launcher=submitit_slurm on a cluster.""",
    ),
    "measure": (
        "run measures over every checkpoint of a run",
        """Results are cached beside the run and go on where they were interrupted.

  toylab measure runs/demo/seed=0                         loss, norms and logits at every checkpoint
  toylab measure runs/demo/seed=0 norms                   one measure (`toylab list measures`)
  toylab measure runs/demo loss --steps log:50            every seed below a directory, 50 log-spaced steps""",
    ),
    "figure": (
        "draw a figure from finished runs",
        """  toylab figure progress                                  from the runs it needs, by default
  toylab figure progress runs/demo/seed=3                 from this run
  toylab figure progress runs/demo --out progress.png     from every seed below a directory""",
    ),
    "paper": (
        "reproduce a paper claim by claim: train, measure, draw, judge",
        """Prints which runs the claims need, which are there and how long the rest takes here; trains them one
after another; then measures, draws every figure and judges every claim against the paper's value and its placebos.
The claims table, results.json and the figures go to paper_repro/<paper>/. A claim that fails stays in the table.

  toylab paper nanda2023 --quick          one seed with a fast recipe, in minutes
  toylab paper nanda2023 --plan           only say what there is to do and how long it takes
  toylab paper nanda2023                  five seeds of the paper's setting, placebos and sweeps
  toylab paper nanda2023 --no-train       measure and judge what is there; the rest is "not run"

Ctrl-C saves; the same command goes on. `toylab list papers` shows what there is.""",
    ),
    "exam": (
        "grade every tool on models whose answer is known",
        """Asks every tool about every known model it applies to (hand-built circuits, compiled programs, planted
adders) and compares what it finds with what was planted: found, missed, falsely found, the score, the score of the same
tool on untrained weights, seconds. Two to three minutes. Writes exam.json, exam.csv and exam.png.

  toylab exam                                   everything
  toylab exam --tools probe "logit lens"        tools whose names start so
  toylab exam --models "or gate" "and gate"     these models only
  toylab exam --out DIR                         where to write (default: exam)""",
    ),
    "verify": (
        "prove a run directory: hashes, gaps, duplicates, replay",
        """Checks every checkpoint against the manifest, looks for gaps and duplicates, and trains again from randomly
chosen saved states to the next checkpoint, which must come out bit for bit. Exit status 0 only if all is well.

  toylab verify runs/demo/seed=0
  toylab verify runs/demo/seed=0 --replays 5""",
    ),
    "list": (
        "what there is: tasks, models, measures, experiments, figures, runs",
        """  toylab list                    everything
  toylab list experiments        one kind
  toylab list runs --runs DIR    the runs below a directory""",
    ),
}


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="toylab",
        description="A laboratory for models small enough to be understood completely.",
        epilog="Start with: toylab demo. Then: toylab <command> --help.",
    )
    commands = top.add_subparsers(dest="command", metavar="<command>", required=True)
    for name, (about, text) in COMMANDS.items():
        sub = commands.add_parser(
            name,
            help=about,
            description=f"{about[0].upper()}{about[1:]}.\n\n{text}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        _arguments(name, sub)
    return top


def _arguments(name: str, sub: argparse.ArgumentParser) -> None:
    if name in ("demo", "list"):
        sub.add_argument("--runs", default="runs", help="where run directories live (default: runs)")
    if name == "demo":
        sub.add_argument("--seed", type=int, default=0)
        sub.add_argument("--fresh", action="store_true", help="start over")
    elif name == "train":
        sub.add_argument("-m", "--multirun", action="store_true", help="a sweep: values separated by commas")
        sub.add_argument("--ensemble", action="store_true", help="the same values, trained as one stacked program")
        sub.add_argument("--config-dir", help="a folder with further yaml files of your own")
        sub.add_argument("overrides", nargs="*", metavar="key=value")
    elif name == "measure":
        sub.add_argument("path", metavar="RUN", help="a run directory, or one with several runs below")
        sub.add_argument("measures", nargs="*", metavar="MEASURE", default=["loss", "norms", "logits"])
        sub.add_argument("--steps", help='which checkpoints: "log:50", "every:100" (default: all)')
    elif name == "figure":
        sub.add_argument("name", metavar="FIGURE", help="`toylab list figures` shows them")
        sub.add_argument("paths", nargs="*", metavar="RUN", help="run directories (default: the runs it needs)")
        sub.add_argument("--out", help="the PNG to write")
        sub.add_argument("--runs", default="runs", help="where run directories live (default: runs)")
    elif name == "paper":
        sub.add_argument("name", metavar="PAPER", help="`toylab list papers` shows them")
        sub.add_argument("--quick", action="store_true", help="fewer and shorter runs, into <out>/quick")
        sub.add_argument("--seeds", type=int, help="seeds of everything that is repeated")
        sub.add_argument("--plan", action="store_true", help="train nothing: say what is there and what is missing")
        sub.add_argument("--no-train", action="store_true", help="judge what is there")
        sub.add_argument("--runs", default="runs", help="where run directories live (default: runs)")
        sub.add_argument("--out", help="where to write (default: paper_repro/<paper>)")
    elif name == "exam":
        sub.add_argument("--out", default="exam", help="where to write (default: exam)")
        sub.add_argument("--tools", nargs="*", default=[], metavar="TOOL", help="only tools whose names start so")
        sub.add_argument("--models", nargs="*", default=[], metavar="MODEL", help="only these known models")
    elif name == "verify":
        sub.add_argument("path", metavar="RUN")
        sub.add_argument("--replays", type=int, default=2, help="how many stretches to train again (default: 2)")
        sub.add_argument("--seed", type=int, default=None, help="which ones (default: at random)")
    elif name == "list":
        kinds = ["tasks", "models", "optims", "measures", "experiments", "figures", "papers", "runs"]
        sub.add_argument("kind", nargs="?", choices=kinds)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 a mistake told in one line, 2 wrong usage, 130 or 143 stopped by a signal."""
    from toylab.durable import Interrupted
    from toylab.errors import UserError

    args = parser().parse_args(argv)
    try:
        return import_module(f"toylab.cli.{args.command}").run(args)
    except UserError as error:
        print(f"toylab: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except Interrupted as stopped:  # within a measure that trains something
        print(f"toylab: {stopped}", file=sys.stderr)
        return 128 + stopped.signal
    except KeyboardInterrupt:
        print("toylab: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `toylab list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1

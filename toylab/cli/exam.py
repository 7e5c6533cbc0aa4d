"""toylab exam: every tool on every known model, as a table, a JSON and a CSV file, and a picture."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path


def run(args: Namespace) -> int:
    """Exit status 1 if a tool raised; a low score is a result, not a failure."""
    from toylab import exam
    from toylab.cli.figure import figure_module
    from toylab.errors import one_of
    from toylab.plotting import house_style
    from toylab.plotting import save as save_figure

    models = exam.zoo()
    for name in args.models:
        one_of("model", name, models)
    models = {name: build for name, build in models.items() if not args.models or name in args.models}
    questions = exam.chosen(args.tools)
    rows = exam.sit(questions, models, say=lambda name: print(f"  {name}", flush=True))
    print(exam.table(rows))
    out = Path(args.out)
    files = exam.save(rows, out)
    figure = figure_module("exam")
    with house_style():
        save_figure(figure.draw(figure.from_rows(rows)), out / "exam.png")
    print(*files, out / "exam.png", sep="\n")
    return int(any(row.failed for row in rows))

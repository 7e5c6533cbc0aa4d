"""toylab measure: named measures over every checkpoint of a run, or of every run below a directory."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from omegaconf import OmegaConf

from toylab.cli.compose import shipped
from toylab.config import build
from toylab.errors import one_of


def named_measure(name: str) -> Any:
    """The measure of conf/measure/<name>.yaml."""
    folder = shipped("conf") / "measure"
    one_of("measure", name, sorted(f.stem for f in folder.glob("*.yaml")))
    node: Any = OmegaConf.to_container(OmegaConf.load(folder / f"{name}.yaml"))
    (entry,) = node.values()
    return build(entry["measure"], f"measure.{name}")


def run(args: Namespace) -> int:
    import numpy as np

    from toylab.runs import RunGroup

    group = RunGroup(args.path)
    print(group)
    for name in args.measures:
        measure = named_measure(name)
        table = group.map(measure, args.steps, progress=True, hindsight=getattr(measure, "hindsight", False))
        table = table.to_dataset() if hasattr(table, "to_dataset") and not hasattr(table, "data_vars") else table
        print(f"\n{name}: {measure!r}")
        steps = table.step.values
        shown = steps[np.unique(np.linspace(0, len(steps) - 1, 8).round().astype(int))]
        print(f"  {'step':>24}" + "".join(f"{s:>11}" for s in shown))
        for variable, values in table.data_vars.items():
            extra = [d for d in values.dims if d not in ("step", "seed", "run")]
            if extra:
                print(f"  {variable:>24}  {dict(values.sizes)}")
                continue
            row = values.sel(step=shown)
            row = row.median([d for d in row.dims if d != "step"]) if row.ndim > 1 else row
            print(f"  {variable:>24}" + "".join(f"{v:>11.4g}" for v in row.values))
    many = " (medians over runs)" if len(group) > 1 else ""
    print(f"\nevery checkpoint is in {args.path}/**/derived/*.nc{many}; in Python: toylab.Run.open(...).map(measure)")
    return 0

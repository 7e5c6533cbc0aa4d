"""toylab figure: figures/<name>.py offers NEEDS, compute(runs) and draw(table)."""

from __future__ import annotations

import importlib.util
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from toylab.cli.compose import shipped
from toylab.errors import UserError, one_of, require


def figure_module(name: str) -> ModuleType:
    """figures/<name>.py of this installation, by name only."""
    folder = shipped("figures")
    one_of("figure", name, sorted(f.stem for f in folder.glob("*.py")))
    spec = importlib.util.spec_from_file_location(f"toylab_figures.{name}", folder / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def draw_figure(name: str, paths: Sequence[str | Path], out: Path) -> Path:
    """Compute the table from these runs, save it beside the picture, draw. Returns the picture's path."""
    from toylab.plotting import house_style, save
    from toylab.runs import RunGroup

    module = figure_module(name)
    runs = [run.path for path in paths for run in RunGroup(path)]
    table = module.compute(RunGroup(runs))
    out.parent.mkdir(parents=True, exist_ok=True)
    table.to_netcdf(out.with_suffix(".nc"), engine="scipy")
    with house_style():
        save(module.draw(table), out)
    return out


def run(args: Namespace) -> int:
    module = figure_module(args.name)
    require(bool(module.NEEDS), f"figure {args.name} is not drawn from runs; `toylab {args.name}` makes and draws it")
    paths = args.paths or [Path(args.runs) / name for name in module.NEEDS]
    for path in paths:
        if not Path(path).is_dir():
            name = Path(path).name
            made = "toylab demo" if name == "demo" else f"toylab train experiment={name}"
            raise UserError(f"figure {args.name} needs {path}, which is not there; make it with: {made}")
    default = Path(paths[0]) / f"{args.name}.png"
    print(draw_figure(args.name, paths, Path(args.out) if args.out else default))
    print((module.__doc__ or "").strip())
    return 0

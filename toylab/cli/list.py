"""toylab list: what there is, read from the first comment of each file."""

from __future__ import annotations

import ast
import json
from argparse import Namespace
from pathlib import Path

from toylab.cli.compose import header, shipped


def run(args: Namespace) -> int:
    kinds = (
        [args.kind]
        if args.kind
        else ["tasks", "models", "optims", "measures", "experiments", "figures", "papers", "runs"]
    )
    for kind in kinds:
        rows = entries(kind, args.runs)
        print(f"{kind}:" if rows else f"{kind}: none")
        width = max((len(name) for name, _ in rows), default=0)
        for name, about in rows:
            print(f"  {name:{width}}  {about}")
    return 0


def entries(kind: str, runs: str) -> list[tuple[str, str]]:
    """(name, one line about it) for everything of one kind."""
    if kind == "runs":
        return [run_line(file) for file in sorted(Path(runs).glob("**/run.json"))]
    if kind in ("figures", "papers"):
        files = sorted(
            shipped("figures").glob("*.py") if kind == "figures" else shipped("paper_repro").glob("*/claims.py")
        )
        return [
            (
                f.stem if kind == "figures" else f.parent.name,
                (ast.get_docstring(ast.parse(f.read_text())) or "").split("\n")[0],
            )
            for f in files
        ]
    folder = shipped("conf") / kind.removesuffix("s")
    return [(f.stem, header(f)) for f in sorted(folder.glob("*.yaml"))]


def run_line(file: Path) -> tuple[str, str]:
    try:
        info = json.loads(file.read_text())
    except (OSError, ValueError):
        return str(file.parent), "unreadable run.json"
    final = info.get("final", {})
    accuracy = f", test accuracy {final['test_accuracy']:.3f}" if "test_accuracy" in final else ""
    return str(file.parent), f"{info.get('status')}, step {info.get('step', '?')} of {info.get('steps', '?')}{accuracy}"

"""The picture of floors in pyproject.toml is true: an import may only point down. Also: what is light stays light."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def modules() -> dict[str, Path]:
    return {
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
        for file in (ROOT / "toylab").rglob("*.py")
    }


def floors() -> list[list[str]]:
    """Top first, as import-linter reads them: ":" and "|" put modules on one floor."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (contract,) = project["tool"]["importlinter"]["contracts"]
    return [[name.strip() for name in layer.replace("|", ":").split(":")] for layer in contract["layers"]]


def independent() -> list[set[str]]:
    """Floors whose modules may not import each other ("|")."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (contract,) = project["tool"]["importlinter"]["contracts"]
    return [{name.strip() for name in layer.split("|")} for layer in contract["layers"] if "|" in layer]


def imports(file: Path, inside_functions: bool = True) -> set[str]:
    """Modules of toylab that a file imports; those under TYPE_CHECKING run never and count for nothing."""
    tree = ast.parse(file.read_text())
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if typing_only or (not inside_functions and isinstance(node, ast.FunctionDef)):
            skipped |= set(ast.walk(node))
    found = set()
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{file}: imports are absolute"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name in modules() and name != "toylab"}


def floor_of(module: str) -> int | None:
    return next((i for i, floor in enumerate(floors()) for name in floor if f"{module}.".startswith(f"{name}.")), None)


def part_of(module: str) -> str:
    return next(name for floor in floors() for name in floor if f"{module}.".startswith(f"{name}."))


def test_every_module_has_a_floor():
    homeless = [name for name in modules() if floor_of(name) is None and name not in ("toylab", "toylab.__main__")]
    assert not homeless, f"add to [tool.importlinter] in pyproject.toml: {homeless}"
    missing = [name for floor in floors() for name in floor if name not in modules()]
    assert not missing, f"pyproject.toml names modules that are not there: {missing}"


@pytest.mark.parametrize("module", sorted(set(modules()) - {"toylab", "toylab.__main__"}))
def test_arrows_point_down(module):
    for target in imports(modules()[module]):
        if part_of(target) == part_of(module):
            continue
        assert floor_of(target) >= floor_of(module), f"{module} imports {target}, which stands above it"
        together = [parts for parts in independent() if {part_of(module), part_of(target)} <= parts]
        assert not together, f"{module} imports {target}: {together} do not know each other"


def imported_by(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split("\n")[-2].split())


HEAVY = {"torch", "numpy", "scipy", "xarray", "matplotlib", "hydra", "pandas"}


@pytest.mark.parametrize("code", ["import toylab", "from toylab.cli import parser; parser()"])
def test_nothing_heavy_is_imported_before_it_is_needed(code):
    assert not imported_by(code) & HEAVY


def test_the_toolkit_knows_nothing_of_runs_and_only_plotting_draws():
    """xarray is imported where a table is made, matplotlib only by plotting."""
    loaded = imported_by("import toylab.train, toylab.runs, toylab.verify")
    assert not loaded & {"matplotlib", "xarray", "hydra", "pandas"}

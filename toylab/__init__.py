"""toylab: a laboratory for models small enough to be understood completely.

import toylab
run = toylab.Run.open("runs/demo/seed=0")

Names are imported when first used, so `import toylab` and the command line start at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toylab.experiment import Experiment
    from toylab.runs import Run, RunGroup
    from toylab.snapshot import Labelled, Snapshot

_HOMES = {
    "Run": "toylab.runs",
    "RunGroup": "toylab.runs",
    "Snapshot": "toylab.snapshot",
    "Labelled": "toylab.snapshot",
    "Experiment": "toylab.experiment",
}
__all__ = ["Experiment", "Labelled", "Run", "RunGroup", "Snapshot"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'toylab' has no attribute {name!r}; it offers {', '.join(__all__)}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__

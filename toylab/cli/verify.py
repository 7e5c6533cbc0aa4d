"""toylab verify: proof that a run directory is what training wrote."""

from __future__ import annotations

import random
from argparse import Namespace


def run(args: Namespace) -> int:
    from toylab.verify import verify

    seed = random.randrange(2**31) if args.seed is None else args.seed
    report = verify(args.path, replays=args.replays, seed=seed, progress=True)
    print(report)
    return 0 if report.ok else 1

"""A step of a switching linear dynamical system by length: T = 100, 1,000 and 10,000, two regimes, two states.

The traced graph and Pyro's ``svi.step`` take turns on one thread; time should grow at most linearly in T.
"""

from __future__ import annotations

import torch
from contenders import engine_contender, svi_contender
from harness import compare
from pplgen.models import SwitchingLDS
from pyro.infer import Trace_ELBO

from pplgen.story.isolation import seeded
from pplgen.story.pair import Pair

LENGTHS = (100, 1_000, 10_000)


def main() -> None:
    """Run the comparison at every length."""
    torch.set_num_threads(1)
    for T in LENGTHS:
        with seeded(0):
            y = torch.randn(1, T, 4).cumsum(1) / 10
            pair = Pair.of_story(SwitchingLDS(2, 2, 4), y)
            compare(
                f"Step of a switching system, T = {T:,}",
                {
                    "pplgen, traced graph": engine_contender(
                        pair, Trace_ELBO(), rate=1e-4, restarts=1, steps=3, compiled=False
                    ),
                    "Pyro's svi.step": svi_contender(
                        pair.model, pair.guide, Trace_ELBO(), y, rate=1e-4, steps=3, validate=False
                    ),
                },
            )


if __name__ == "__main__":
    main()

"""KL warm-up: the weight of the latent variables' KL terms while a pair is traced."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from pplgen.story.pair import Pair

__all__ = ["half_kl_weight"]


@contextlib.contextmanager
def half_kl_weight(pair: Pair) -> Iterator[None]:
    """Set the KL weight to .5, so that tracing and validating the graph depend on it."""
    assert pair.kl_weight is not None, "KL warm-up needs a pair with a KL weight"
    pair.kl_weight.fill_(0.5)
    try:
        yield
    finally:
        pair.kl_weight.fill_(1.0)

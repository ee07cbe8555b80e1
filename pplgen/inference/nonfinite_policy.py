"""What happens to a run with a non-finite step: how often it may go back, at which learning rate, and the message."""

from __future__ import annotations

__all__ = ["MAX_NON_FINITE", "NOT_LOCALISED", "RATE_FACTOR", "non_finite_message"]

MAX_NON_FINITE = 3
"""Number of non-finite steps at which a run stops."""
RATE_FACTOR = 0.1
"""Factor on the learning rate after each earlier non-finite step."""
NOT_LOCALISED = "the ELBO or its gradient was not finite in the steps up to here"
UNKNOWN = "the ELBO or its gradient was not finite, but is finite when the step is repeated"


def non_finite_message(what: str | None, step: int, number: int, kept: int, rate: float) -> str:
    """Message about the ``number``-th non-finite step and how the run continues.

    ``kept`` is the step of the last good state, ``rate`` the learning rate from there on.
    """
    what, count = what or UNKNOWN, f"fault {number} of {MAX_NON_FINITE}"
    if number < MAX_NON_FINITE:
        return f"step {step}: {what}; continued from step {kept} with learning rate {rate:.2g} ({count})"
    return f"step {step}: {what}; stopped at the state of step {kept} ({count})"

"""Colours of the figures."""

from __future__ import annotations

__all__ = ["COLOURS"]

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#882255", "#999933")
"""Okabe and Ito's colours and two of Tol's, distinguishable with colour vision deficiency."""

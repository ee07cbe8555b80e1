"""Distributions that Pyro lacks, each of which works in anybody's model or guide.

May import: story (the parameters in `story/dynamics.py`). Start reading at `missing.py`.
"""

from __future__ import annotations

from pplgen.distributions.hidden_markov import HiddenMarkovSeries
from pplgen.distributions.inverse_chi import InverseRootGamma, inverse_chi
from pplgen.distributions.inverse_wishart import InverseWishart
from pplgen.distributions.linear_gaussian import LinearGaussianSeries
from pplgen.distributions.missing import Blockwise, MarginalIndependent, MarginalNormal
from pplgen.distributions.normal_mixture import NormalMixture
from pplgen.distributions.normal_with_zeros import NormalWithZeros
from pplgen.distributions.switching_autoregression import MarkovSwitchingAutoregression
from pplgen.distributions.switching_observations import SwitchingObservations
from pplgen.distributions.switching_path import SwitchingLinearGaussianPath
from pplgen.story.dynamics import LinearGaussian

__all__ = [
    "Blockwise",
    "HiddenMarkovSeries",
    "InverseRootGamma",
    "InverseWishart",
    "LinearGaussian",
    "LinearGaussianSeries",
    "MarginalIndependent",
    "MarginalNormal",
    "MarkovSwitchingAutoregression",
    "NormalMixture",
    "NormalWithZeros",
    "SwitchingLinearGaussianPath",
    "SwitchingObservations",
    "inverse_chi",
]

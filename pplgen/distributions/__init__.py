"""Distributions that Pyro lacks, each of which works in anybody's model or guide.

May import: story (the parameters in `story/dynamics.py`). Start reading at `missing.py`.
"""

from __future__ import annotations

from pplgen.distributions.cholesky_factors import BartlettCholesky, InverseWishartCholesky
from pplgen.distributions.continuous_bernoulli import ContinuousBernoulli
from pplgen.distributions.counts import (
    NegativeBinomial2,
    zero_inflated_negative_binomial,
    zero_inflated_poisson,
)
from pplgen.distributions.decoder_likelihoods import CategoricalValues, decoder_likelihood
from pplgen.distributions.fraley_raftery import fraley_raftery
from pplgen.distributions.hidden_markov import HiddenMarkovSeries
from pplgen.distributions.inverse_chi import InverseRootGamma, inverse_chi
from pplgen.distributions.inverse_wishart import InverseWishart
from pplgen.distributions.latent_priors import FlatPrior, standard_prior, vamp_prior
from pplgen.distributions.linear_gaussian import LinearGaussianSeries
from pplgen.distributions.missing import (
    Blockwise,
    MarginalIndependent,
    MarginalNormal,
    WholeRowNormal,
    normal_rows,
)
from pplgen.distributions.normal_mixture import NormalMixture
from pplgen.distributions.normal_with_zeros import NormalWithZeros
from pplgen.distributions.ordinal import OrderStatistics, ordered_logistic, ordered_probit
from pplgen.distributions.stick_breaking import stick_breaking
from pplgen.distributions.switching_autoregression import MarkovSwitchingAutoregression
from pplgen.distributions.switching_observations import Emission, SwitchingObservations
from pplgen.distributions.switching_path import Dynamics, SwitchingLinearGaussianPath
from pplgen.story.dynamics import LinearGaussian

__all__ = [
    "BartlettCholesky",
    "Blockwise",
    "CategoricalValues",
    "ContinuousBernoulli",
    "Dynamics",
    "Emission",
    "FlatPrior",
    "HiddenMarkovSeries",
    "InverseRootGamma",
    "InverseWishart",
    "InverseWishartCholesky",
    "LinearGaussian",
    "LinearGaussianSeries",
    "MarginalIndependent",
    "MarginalNormal",
    "MarkovSwitchingAutoregression",
    "NegativeBinomial2",
    "NormalMixture",
    "NormalWithZeros",
    "OrderStatistics",
    "SwitchingLinearGaussianPath",
    "SwitchingObservations",
    "WholeRowNormal",
    "decoder_likelihood",
    "fraley_raftery",
    "inverse_chi",
    "normal_rows",
    "ordered_logistic",
    "ordered_probit",
    "standard_prior",
    "stick_breaking",
    "vamp_prior",
    "zero_inflated_negative_binomial",
    "zero_inflated_poisson",
]

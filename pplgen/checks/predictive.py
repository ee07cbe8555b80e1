"""Checks of predictive distributions: prior, posterior, and leave-one-out."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy import stats

from pplgen.checks.check import Check, ParetoShapes, Verdict, not_applicable
from pplgen.checks.importance_weights import elbo_gap, guide_advice, resampled_means
from pplgen.checks.inputs import CheckInputs
from pplgen.checks.leave_one_out_pit import MAX_HIGH_ROWS, leave_one_out_pit, why_not_replicated
from pplgen.checks.replicates import Replicates, replicate
from pplgen.checks.uniformity import holm
from pplgen.posterior.leave_one_out import leave_one_out
from pplgen.posterior.psis import smoothed_weights
from pplgen.posterior.residuals import quantile_residuals

__all__ = ["LOO_PARETO_K", "holm", "loo", "loo_pit", "posterior_predictive", "prior_predictive"]

LOO_PARETO_K = "rows with LOO Pareto k above the threshold (fraction)"
"""Name of the check whose rows are plotted in reports."""
LEVEL = 0.01
"""Family-wise level of the tests of a check."""
PRIOR_DRAWS = 1000
FINITE_VARIANCE_K = 0.5
"""Pareto k up to which weights have a finite variance (Vehtari et al. 2024)."""

GELMAN = "Gelman et al. 2020, Bayesian workflow"
MISFIT = "the model does not reproduce the data: change the likelihood"
TAILS, BOUNDS = (
    "outliers or heavy tails: StudentT for Normal",
    "bounded or discrete data: a likelihood with that support",
)
REMEDIES = {
    "mean": ("a term of the mean is missing or wrong",) * 2,
    "sd": ("a separate scale for each column", "overdispersion: NegativeBinomial for Poisson, StudentT for Normal"),
    "min": (TAILS, BOUNDS),
    "max": (BOUNDS, TAILS),
    "skewness": ("a skewed distribution, or the logarithm of the column",) * 2,
    "kurtosis": ("lighter tails: bounds, or several components", TAILS),
    "correlation": (
        "weaker dependence between columns",
        "dependence between columns: covariances, factors, or components",
    ),
    "autocorrelation": ("fewer lags or states", "more lags or states"),
}
"""Likely cause if a statistic of the data is below, or above, its replicates."""


def prior_predictive(inputs: CheckInputs) -> Check:
    """Fraction of columns whose mean or standard deviation is outside the range of prior predictive draws."""
    name = "columns outside the prior predictive (fraction)"
    if not inputs.structure.shared_latent:
        return not_applicable(name, GELMAN, "the model has no shared latent, hence no prior predictive")
    if not inputs.num_rows:
        return not_applicable(name, GELMAN, inputs.why_no_training_rows or "there are no rows")
    replicates = replicate(inputs.pair, inputs.replicated_rows, {}, PRIOR_DRAWS, inputs.columns)
    outside = (replicates.observed < replicates.replicated.amin(0)) | (
        replicates.observed > replicates.replicated.amax(0)
    )
    flagged = [name for name, out in zip(replicates.names, outside, strict=True) if out]
    columns = sorted({name.split(" of ", 1)[1] for name in flagged if name.startswith(("mean of", "sd of"))})
    value = len(columns) / len(replicates.columns)
    if not columns:
        return Check(name, value, 0.0, GELMAN, Verdict.PASS)
    remedy = f"{', '.join(columns[:5])}: no prior draw generates such data; {_prior_advice(replicates, flagged)}"
    return Check(name, value, 0.0, GELMAN, Verdict.WARN, remedy)


def _prior_advice(replicates: Replicates, flagged: list[str]) -> str:
    """Recommend how to change the priors: by the standard deviations of columns among prior draws, if they are off."""
    scales = [index for index, name in enumerate(replicates.names) if name in flagged and name.startswith("sd of")]
    if not scales:
        return "shift the priors, or centre the data"
    index = max(scales, key=lambda each: abs(math.log(_ratio(replicates, each))))
    ratio, column = _ratio(replicates, index), replicates.names[index].split(" of ", 1)[1]
    if ratio > 1:
        return f"{column} varies {ratio:.2g} times as much as the widest: widen the priors, or rescale the data"
    return f"{column} varies {1 / ratio:.2g} times less than the narrowest: narrow the priors, or rescale the data"


def _ratio(replicates: Replicates, index: int) -> float:
    """Ratio of a statistic to the nearest of its replicates."""
    observed, replicated = replicates.observed[index].double(), replicates.replicated[:, index].double()
    nearest = replicated.amax() if observed > replicated.amax() else replicated.amin()
    return float((observed.clamp_min(1e-300) / nearest.clamp_min(1e-300)).clamp(1e-300, 1e300))


def posterior_predictive(inputs: CheckInputs) -> Check:
    """Smallest two-sided posterior predictive p-value of column statistics, with Holm's correction.

    Statistics are mean, standard deviation, extremes, skewness and kurtosis, lag-one autocorrelation for series, and
    the mean squared correlation between columns.
    Replicates are new rows. As the same data were fitted, the p-values are conservative.
    """
    name, source = "posterior predictive p-value (smallest, Holm)", "Gelman, Meng and Stern 1996; Holm 1979"
    if reason := why_not_replicated(inputs):
        return not_applicable(name, source, reason)
    replicates = inputs.replicates
    adjusted = holm(replicates.p_values().tolist())
    worst = int(adjusted.argmin())
    value = float(adjusted[worst])
    if value > LEVEL:
        return Check(name, value, LEVEL, source, Verdict.PASS)
    rejected = [replicates.names[index] for index in adjusted.argsort().tolist() if adjusted[index] <= LEVEL]
    observed, replicated = replicates.observed[worst], replicates.replicated[:, worst]
    low, high = torch.quantile(replicated.double(), torch.tensor([0.05, 0.95]).double()).tolist()
    finding = f"{rejected[0]} is {observed:.4g}, replicates {low:.4g} to {high:.4g}"
    others = f" (also {', '.join(rejected[1:4])}{' ...' if len(rejected) > 4 else ''})" if rejected[1:] else ""
    above = bool(observed > replicated.median())
    remedy = f"{finding}{others}; {MISFIT} ({REMEDIES[rejected[0].split(' of ')[0]][above]})"
    return Check(name, value, LEVEL, source, Verdict.FAIL, remedy)


def loo(inputs: CheckInputs) -> Check:
    """Fraction of rows whose PSIS-LOO weights have Pareto k above ``min(1 - 1 / log10(num_draws), .7)``.

    High values say that leaving out by weights is unreliable, as it is for a model that is flexible enough to follow
    single rows, and for a guide without correlations. They are a misfit where there are many, and the effective number
    of parameters is above their number (Vehtari et al. 2017, section 2.2 and the glossary of the loo package).
    """
    name, source = LOO_PARETO_K, "Magnusson et al. 2019; Vehtari et al. 2024"
    if reason := _why_no_loo(inputs):
        return not_applicable(name, source, reason)
    estimate = leave_one_out(inputs.weighted)
    k = np.nan_to_num(np.asarray(estimate.pareto_k, dtype=float), nan=np.inf, posinf=np.inf, neginf=-np.inf)
    shapes = ParetoShapes(1 + inputs.scored_rows.step * np.arange(len(k)), k, float(estimate.good_k))
    value, total = float(shapes.high.mean()), f"elpd {estimate.elpd:.2f} +- {estimate.se:.2f} nats, p {estimate.p:.1f}"
    of = "" if len(k) == inputs.pair.num_rows else f" of {len(k):,} evenly spaced rows"
    if not shapes.high.any():
        return Check(name, value, 0.0, source, Verdict.PASS, f"{total}{of}", shapes)
    which = ", ".join(map(str, shapes.rows[np.argsort(-k)[:3]]))
    size = sum(inputs.weighted.sites[name][0].numel() for name in inputs.structure.shared_latent)
    problem = _guide_problem(inputs)
    misfit = value > MAX_HIGH_ROWS and estimate.p > size and not problem
    verdict, threshold = (Verdict.FAIL, MAX_HIGH_ROWS) if misfit else (Verdict.WARN, 0.0)
    remedy = f"{shapes} (rows {which}): "
    if problem:
        remedy += f"{problem}, so the cause may be the guide rather than the data; {guide_advice(inputs)}; "
        remedy += "inspect only rows that remain high, or use a likelihood with heavier tails"
    else:
        remedy += "these rows are highly influential: inspect them, or use a likelihood with heavier tails"
    return Check(name, value, threshold, source, verdict, f"{remedy}; {total}{of}", shapes)


def _guide_problem(inputs: CheckInputs) -> str:
    """Report other evidence against the guide, whose weights enter every row's LOO weights; empty if there is none."""
    if inputs.sampled:
        return ""
    khat = float(smoothed_weights(inputs.weighted.log_ratio)[1])
    if khat > FINITE_VARIANCE_K:
        return f"the guide's own weights have a Pareto k of {khat:.2f}"
    if (moved := resampled_means(inputs)).verdict in (Verdict.WARN, Verdict.FAIL):
        return f"importance weights shift a mean by {moved.value:.2g} sd"
    if (gap := elbo_gap(inputs)).verdict is Verdict.WARN:
        return f"the ELBO is {gap.value:.2g} nats below the log evidence"
    return ""


def loo_pit(inputs: CheckInputs) -> Check:
    """Smallest p-value of tests that LOO-PIT values are uniform, with Holm's correction.

    For each column two tests: Kolmogorov and Smirnov's, and whether the sum of squares of the values' standard normal
    quantiles has its chi-squared distribution, which detects over- and underdispersion. The LOO-PIT of an entry is
    ``P(x_rep_ij <= x_ij | the other rows)``, randomised for discrete columns. Without shared latents, nothing is left
    out.
    """
    name, source = "LOO-PIT uniformity p-value (smallest, Holm)", "Gabry et al. 2019; Holm 1979"
    pit = inputs.once(leave_one_out_pit)
    if isinstance(pit, str):
        return not_applicable(name, source, pit)
    columns = [column for column in pit.seen for _ in range(2)]
    adjusted = holm([p_value for column in pit.seen for p_value in _uniformity(column)])
    worst = int(adjusted.argmin())
    value = float(adjusted[worst])
    if value > LEVEL:
        return Check(name, value, LEVEL, source, Verdict.PASS)
    sd, mean = float(np.std(columns[worst])), float(np.mean(columns[worst]))
    wide = "too wide" if sd < 12**-0.5 else "too narrow"
    shape = f"mean {mean:.2f} (expected .5), sd {sd:.2f} (expected .29): predictions are biased or {wide}"
    return Check(name, value, LEVEL, source, Verdict.FAIL, f"{pit.columns[worst // 2]}, {shape}; {MISFIT}")


def _uniformity(pit: np.ndarray) -> tuple[float, float]:
    """P-values of uniformity of a column, and of the dispersion of its normal quantiles."""
    if not len(pit):
        return 1.0, 1.0
    squares = float(quantile_residuals(torch.from_numpy(pit)).square().sum())
    tails = stats.chi2.cdf(squares, len(pit)), stats.chi2.sf(squares, len(pit))
    return float(stats.kstest(pit, "uniform").pvalue), 2 * float(min(tails))


def _why_no_loo(inputs: CheckInputs) -> str | None:
    """Why rows cannot be left out; ``None`` if they can."""
    if inputs.why_no_shared:
        return inputs.why_no_shared
    if not inputs.is_training:
        return "the rows are not the training rows, so none can be left out"
    if inputs.pair.weights is not None:
        return "weighted rows cannot be left out one at a time"
    if inputs.num_rows < 2:
        return "a single series cannot be left out; fit.leave_future_out() scores its steps"
    return None

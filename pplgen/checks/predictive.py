"""Checks of what the model predicts: from the prior, from the posterior, and of each row from the others."""

from __future__ import annotations

import numpy as np
import torch
from scipy import stats

from pplgen.checks.check import Check, RowShapes, Verdict, beside, despite
from pplgen.checks.inputs import CheckInputs
from pplgen.checks.replicates import replicate
from pplgen.checks.uniformity import holm
from pplgen.checks.weights import bound_gap, resampled_means, wider
from pplgen.posterior.leave_one_out import leave_one_out
from pplgen.posterior.psis import smoothed_weights

__all__ = ["LOO", "holm", "loo", "loo_pit", "posterior_predictive", "prior_predictive"]

LOO = "rows with LOO Pareto k above its limit (share)"
"""Name of the check whose rows a report draws."""
LEVEL = 0.01
"""Level of the tests, over all of a check's tests together."""
PRIOR_DRAWS = 1000
CLEARLY_SMALL = 0.5
"""Pareto k up to which weights have a finite variance (Vehtari et al. 2024)."""
SHARE = 0.05
"""Share of rows whose leave-one-out weights may be heavy-tailed before their sum is given up."""

GELMAN = "Gelman et al. 2020, Bayesian workflow"
MISFIT = "the model does not generate such data: change the likelihood"
TAILS, BOUNDS = "outliers or heavy tails: StudentT for Normal", "the data have bounds, or steps, that it does not know"
REMEDIES = {
    "mean": ("a term of the mean is missing or wrong",) * 2,
    "sd": ("each column wants a scale of its own", "more spread: NegativeBinomial for Poisson, StudentT for Normal"),
    "min": (TAILS, BOUNDS),
    "max": (BOUNDS, TAILS),
    "skewness": ("a skewed distribution, or the logarithm of the column",) * 2,
    "kurtosis": ("lighter tails: bounds, or several components", TAILS),
    "autocorrelation": ("fewer lags or states", "more lags or states"),
}
"""What may be wrong where a statistic of the data is below, or above, those of replicates."""


def prior_predictive(inputs: CheckInputs) -> Check:
    """Share of columns whose mean or standard deviation no draw of the prior predictive distribution reaches."""
    name = "columns beyond the prior predictive (share)"
    if not inputs.structure.shared_latent:
        return beside(name, GELMAN, "the rows share no latent, so that there is no prior to predict from")
    if not inputs.num_rows:
        return beside(name, GELMAN, inputs.why_no_training_rows or "there are no rows")
    made = replicate(inputs.pair, inputs.predicted, {}, PRIOR_DRAWS, inputs.columns)
    beyond = (made.observed < made.replicated.amin(0)) | (made.observed > made.replicated.amax(0))
    judged = {n: bool(b) for n, b in zip(made.names, beyond, strict=True) if n.startswith(("mean of", "sd of"))}
    missed = sorted({n.split(" of ", 1)[1] for n, far in judged.items() if far})
    value = len(missed) / len(made.columns)
    if not missed:
        return Check(name, value, 0.0, GELMAN, Verdict.PASS)
    remedy = f"{', '.join(missed[:5])}: no prior draw predicts such data; widen or move the priors, or rescale the data"
    return Check(name, value, 0.0, GELMAN, Verdict.WARN, remedy)


def posterior_predictive(inputs: CheckInputs) -> Check:
    """Smallest two-sided p-value of test statistics of the columns under replicated data, after Holm.

    Statistics are mean, standard deviation, extremes, skewness and kurtosis, and lag-one autocorrelation of series.
    Replicates are of new rows. As the fit has seen the data, p-values are too large rather than too small.
    """
    name, source = "posterior predictive p (smallest, Holm)", "Gelman, Meng and Stern 1996; Holm 1979"
    if reason := _why_not_replicated(inputs):
        return beside(name, source, reason)
    made = inputs.replicates
    adjusted = holm(made.p_values().tolist())
    worst = int(adjusted.argmin())
    value = float(adjusted[worst])
    if value > LEVEL:
        return Check(name, value, LEVEL, source, Verdict.PASS)
    far = [made.names[index] for index in adjusted.argsort().tolist() if adjusted[index] <= LEVEL]
    low, high = torch.quantile(made.replicated[:, worst].double(), torch.tensor([0.05, 0.95]).double()).tolist()
    found = f"{far[0]} is {made.observed[worst]:.4g}, replicates {low:.4g} to {high:.4g}"
    others = f" (also {', '.join(far[1:4])}{' ...' if len(far) > 4 else ''})" if far[1:] else ""
    above = bool(made.observed[worst] > made.replicated[:, worst].median())
    remedy = f"{found}{others}; {MISFIT} ({REMEDIES[far[0].split(' of ')[0]][above]})"
    return Check(name, value, LEVEL, source, Verdict.FAIL, remedy)


def loo(inputs: CheckInputs) -> Check:
    """Share of rows whose leave-one-out weights have a Pareto shape above ``min(1 - 1 / log10(draws), .7)``."""
    name, source = LOO, "Magnusson et al. 2019; Vehtari et al. 2024"
    if reason := _why_no_loo(inputs):
        return beside(name, source, reason)
    found = leave_one_out(inputs.weighted)
    k = np.nan_to_num(np.asarray(found.pareto_k, dtype=float), nan=np.inf, posinf=np.inf, neginf=-np.inf)
    shapes = RowShapes(1 + inputs.chosen.step * np.arange(len(k)), k, float(found.good_k))
    value, total = float(shapes.high.mean()), f"elpd {found.elpd:.2f} +- {found.se:.2f} nats, p {found.p:.1f}"
    of = "" if len(k) == inputs.pair.num_rows else f" of {len(k):,} rows, evenly chosen"
    if not shapes.high.any():
        return Check(name, value, SHARE, source, Verdict.PASS, f"{total}{of}", shapes)
    which = ", ".join(map(str, shapes.rows[np.argsort(-k)[:3]]))
    verdict, found_rows = Verdict.WARN if value <= SHARE else Verdict.FAIL, f"{shapes} (rows {which})"
    remedy = f"{despite(verdict, value, SHARE, found_rows) if verdict is Verdict.WARN else found_rows}: "
    if doubts := _doubts_of_guide(inputs):
        remedy += f"{doubts}, so that it may be the guide's fault rather than the data's; {wider(inputs)}; "
        remedy += "only rows that stay high want a look, or a likelihood with heavier tails"
    else:
        remedy += "these rows alone move the posterior: look at them, or take a likelihood with heavier tails"
    return Check(name, value, SHARE, source, verdict, f"{remedy}; {total}{of}", shapes)


def _doubts_of_guide(inputs: CheckInputs) -> str:
    """Say what else speaks against the guide, for its own weights are a part of every row's; empty if nothing does."""
    if inputs.sampled:
        return ""
    khat = float(smoothed_weights(inputs.weighted.log_ratio)[1])
    if khat > CLEARLY_SMALL:
        return f"the guide's own weights have a Pareto k of {khat:.2f}"
    if (moved := resampled_means(inputs)).verdict is Verdict.WARN:
        return f"weights move a mean by {moved.value:.2g} sd"
    if (gap := bound_gap(inputs)).verdict is Verdict.WARN:
        return f"the ELBO is {gap.value:.2g} nats below the log evidence"
    return ""


def loo_pit(inputs: CheckInputs) -> Check:
    """Smallest p-value of a Kolmogorov test that leave-one-out predictive probabilities are uniform, after Holm.

    Of each column, ``P(new x_ij <= x_ij | the other rows)``, at random within the step of a discrete column. Where the
    rows share no latent, nothing is left out.
    """
    name, source = "LOO-PIT uniform, p (smallest, Holm)", "Gabry et al. 2019; Holm 1979"
    if reason := _why_not_replicated(inputs):
        return beside(name, source, reason)
    reason = inputs.why_no_shared
    if inputs.structure.shared_latent and (reason or not inputs.is_training):
        return beside(name, source, reason or "the rows are not those of the fit, so none can be left out")
    made = inputs.replicates
    if not made.values.numel():
        return beside(name, source, "steps of series, or sites of different lengths, are no rows to leave out")
    if inputs.structure.shared_latent:
        every = made.step * inputs.predicted_step // inputs.chosen.step
        densities = inputs.weighted.log_likelihood[:, ::every]
        if densities.shape[1] != len(made.values):
            return beside(name, source, "what is observed is not one entry to a row")
        weights = smoothed_weights(inputs.weighted.log_ratio[:, None] - densities)[0][:, :, None]
    else:
        weights = torch.full((len(made.drawn), 1, 1), 1 / len(made.drawn), dtype=torch.float64)
    below = (weights * (made.drawn < made.values)).sum(0)
    equal = (weights * (made.drawn == made.values)).sum(0)
    pit = (below + torch.rand_like(below) * equal).where(~made.values.isnan(), torch.nan).cpu().numpy()
    columns = [column[~np.isnan(column)] for column in pit.T]
    p_values = [stats.kstest(column, "uniform").pvalue if len(column) else 1.0 for column in columns]
    adjusted = holm(p_values)
    worst = int(adjusted.argmin())
    value = float(adjusted[worst])
    if value > LEVEL:
        return Check(name, value, LEVEL, source, Verdict.PASS)
    spread, centre = float(np.std(columns[worst])), float(np.mean(columns[worst]))
    wide = "too wide" if spread < 12**-0.5 else "too narrow"
    shape = f"mean {centre:.2f} for .5, sd {spread:.2f} for .29: predictions are biased or {wide}"
    return Check(name, value, LEVEL, source, Verdict.FAIL, f"{made.columns[worst]}, {shape}; {MISFIT}")


def _why_not_replicated(inputs: CheckInputs) -> str | None:
    """Say why data cannot be replicated; ``None`` where they can."""
    if not inputs.structure.observed:
        return "the model observes nothing that could be replicated"
    if inputs.pair.weights is not None and inputs.is_training:
        return "rows that count differently have no replicates"
    if not inputs.num_rows or (inputs.rows is inputs.pair.data and not inputs.has_rows):
        return inputs.why_no_training_rows or "there are no rows"
    return None


def _why_no_loo(inputs: CheckInputs) -> str | None:
    """Say why no row can be left out; ``None`` where one can."""
    if inputs.why_no_shared:
        return inputs.why_no_shared
    if not inputs.is_training:
        return "the rows are not those of the fit, so none can be left out"
    if inputs.pair.weights is not None:
        return "rows that count differently cannot be left out one at a time"
    if inputs.num_rows < 2:
        return "one series cannot be left out of the only one there is; fit.leave_future_out() scores its steps"
    return None

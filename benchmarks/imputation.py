"""Breast cancer's 30 measurements, standardised, half of the entries removed at random: squared error of imputation.

An importance-weighted autoencoder (MIWAE, Mattei and Frellsen 2019), compared with column means and exact EM of one
Gaussian, all on the same entries. Errors are mean squared errors of the removed entries, in units of the columns'
variances.
"""

from __future__ import annotations

import time

import torch
from harness import report
from pplgen.models import VAE, FactorAnalysis
from torch import Tensor

import pplgen
from pplgen.exact.em_missing import e_step_missing, em_missing

FRACTION, SEED, DRAWS = 0.5, 0, 200


def measurements() -> tuple[Tensor, Tensor]:
    """Return standardised rows, and the same with entries removed."""
    table = pplgen.load_data("breast_cancer")
    x = table.values.double()
    x = (x - x.mean(0)) / x.std(0)
    return x, pplgen.mask_entries(pplgen.load_data(x), FRACTION, seed=SEED).values.double()


def impute_by_em(observed: Tensor) -> Tensor:
    """Impute conditional expectations under one Gaussian, fitted by EM."""
    result = em_missing(observed, 1, num_starts=1, max_iterations=100, tolerance=1e-3)
    return e_step_missing(observed, result.parameters).completed[:, 0]


def main() -> None:
    """Fit and compare."""
    x, observed = measurements()
    removed = observed.isnan()

    def error(imputed: Tensor) -> str:
        return f"{float((imputed - x)[removed].square().mean()):.3f}"

    rows = {"column means": (error(torch.where(removed, observed.nanmean(0), observed)), "")}
    started = time.perf_counter()
    rows["exact EM, one Gaussian"] = (error(impute_by_em(observed)), f"{time.perf_counter() - started:.0f}")
    candidates = {
        "FactorAnalysis, 8 factors": (FactorAnalysis(30, 8), {"steps": 3000}),
        "VAE, 10 latent dimensions, importance-weighted (K = 20)": (
            VAE(30, 10, hidden=(128, 128), activation="tanh", likelihood="normal"),
            {"steps": 4000, "learning_rate": 1e-3, "batch_size": 64, "elbo": "importance", "num_particles": 20},
        ),
    }
    for name, (story, options) in candidates.items():
        started = time.perf_counter()
        fit = pplgen.fit(story, observed.float(), progress=False, **options)
        imputed = fit.impute(draws=DRAWS).mean(0).double()
        rows[name] = (error(imputed), f"{time.perf_counter() - started:.0f}")
    report("Imputation, breast cancer, half of the entries removed", ("squared error", "seconds"), rows, rows)


if __name__ == "__main__":
    main()

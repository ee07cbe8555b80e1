"""Standard deviations of known posteriors: those of a mean-field guide, linear response, and NUTS, with their times.

NUTS takes twice as many draws until its error is at most that of linear response. Errors are relative, medians over the
parameters of a model; times are medians of seeds, of a whole fit with tracing or warm-up.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median

import torch
from harness import report

import pplgen
from pplgen.verification.data_sources import Sources
from pplgen.verification.known_posterior import KnownPosterior
from pplgen.verification.posterior_accuracy import KNOWN

DRAWS = (250, 500, 1000, 2000)


def _errors(found: torch.Tensor, known: KnownPosterior, data: tuple[torch.Tensor, ...], names: list[str]) -> float:
    """Median relative error of standard deviations, sites concatenated in the order of ``names``."""
    moments = known.moments(*data)
    exact = torch.cat([moments[name][1].reshape(-1).double() for name in names])
    return float((found / exact - 1).abs().median())


def nuts(known: KnownPosterior, data: tuple[torch.Tensor, ...], seed: int, target: float) -> tuple[float, float, int]:
    """Return seconds, error and number of draws of the shortest chain whose error is at most ``target``."""
    for draws in DRAWS:
        started = time.perf_counter()
        fit = pplgen.fit(known.model, data, method="nuts", steps=draws, restarts=1, seed=seed, progress=False)
        seconds = time.perf_counter() - started
        posterior = fit.to_datatree(groups=["posterior"])["posterior"].to_dataset()
        names = list(known.moments(*data))
        found = torch.cat(
            [torch.tensor(posterior[name].values[0]).reshape(draws, -1).std(0).double() for name in names]
        )
        error = _errors(found, known, data, names)
        if error <= target:
            break
    return seconds, error, draws


def main() -> None:
    """Compare on every known posterior that the guide's family does not contain."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder with the posteriordb data")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    sources = Sources(options.data)
    rows, raw = {}, {}
    for name, known in KNOWN.items():
        if known.exact or (options.names and name not in options.names):
            continue
        data = known.data(sources)
        figures: dict[str, list[float]] = {}
        for seed in range(options.seeds):
            started = time.perf_counter()
            fit = pplgen.fit(known.model, data, known.guide, seed=seed, progress=False)
            fit_seconds = time.perf_counter() - started
            tables = {method: fit.covariance(method) for method in ("guide", "linear-response")}
            response_seconds = time.perf_counter() - started
            names = list(fit.pair.structure.shared_latent)
            sds = {m: torch.as_tensor(table.to_numpy().copy()).diag().sqrt() for m, table in tables.items()}
            guide, response = (_errors(sds[method], known, data, names) for method in ("guide", "linear-response"))
            seconds, error, draws = nuts(known, data, seed, max(response, 0.02))
            row = {"guide": guide, "linear response": response, "fit": fit_seconds, "both": response_seconds}
            for key, value in (row | {"nuts": error, "nuts seconds": seconds, "draws": draws}).items():
                figures.setdefault(key, []).append(value)
        raw[name] = figures
        m = {key: median(values) for key, values in figures.items()}
        rows[name] = (
            f"{m['guide']:.1%}",
            f"{m['linear response']:.1%}",
            f"{m['both']:.1f}",
            f"{m['nuts']:.1%}",
            f"{m['nuts seconds']:.1f}",
            f"{m['draws']:.0f}",
        )
    columns = ("guide", "linear response", "seconds of both", "NUTS", "seconds", "draws")
    report("Standard deviations of known posteriors", columns, rows, raw, note=f"medians of {options.seeds} seeds")


if __name__ == "__main__":
    main()

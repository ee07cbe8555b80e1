"""Fit ssm's switching linear dynamical system by Laplace-EM to the series of a file; run by ``switching_fit.py``.

ssm needs an older NumPy, so this runs in a separate environment:
``python ssm_fit.py SERIES.npz FITS.npz REGIMES STATES STARTS``.
"""

import sys
import time
import warnings

import numpy as np
import ssm

warnings.filterwarnings("ignore")


def fit(y, num_regimes, num_states, seed):
    """Fit from one start; return seconds, the segmentation and the parameters."""
    np.random.seed(seed)  # noqa: NPY002
    started = time.perf_counter()
    model = ssm.SLDS(y.shape[1], num_regimes, num_states, emissions="gaussian", single_subspace=True)
    _, posterior = model.fit(y, method="laplace_em", num_iters=50, alpha=0.0, verbose=0)
    path = posterior.mean_continuous_states[0]
    regimes = model.most_likely_states(path, y)
    seconds = time.perf_counter() - started
    parameters = {
        "P": model.transitions.transition_matrix,
        "A": model.dynamics.As,
        "b": model.dynamics.bs,
        "Q": model.dynamics.Sigmas,
        "C": model.emissions.Cs[0],
        "d": model.emissions.ds[0],
        "R": np.exp(model.emissions.inv_etas[0]),
    }
    return seconds, regimes, parameters


def main():
    """Fit all restarts, after a warm-up that compiles; failed ones are skipped."""
    source, target, num_regimes, num_states, starts = sys.argv[1:]
    y = np.load(source)["y"]
    results = {}
    for seed in (1000, *range(int(starts))):
        try:
            seconds, regimes, parameters = fit(y, int(num_regimes), int(num_states), seed)
        except AssertionError:  # raised by ssm for non-finite values
            continue
        results |= {f"{name}_{seed}": value for name, value in parameters.items()}
        results |= {f"seconds_{seed}": seconds, f"regimes_{seed}": regimes}
    np.savez(target, **results)


if __name__ == "__main__":
    main()

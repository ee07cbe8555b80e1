"""``Fit``: a trained pair and its methods."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor

from pplgen.data.streams import RowStream
from pplgen.data.table import Table
from pplgen.errors import InputError
from pplgen.fitting.diagnostic_methods import DiagnosticMethods
from pplgen.fitting.latent_methods import LatentMethods
from pplgen.fitting.run_contents import pair_facts, run_header, saved_buffers, table_facts
from pplgen.fitting.series_methods import SeriesMethods
from pplgen.inference.training_result import Training
from pplgen.posterior import datatree
from pplgen.posterior.imputation import impute_rows
from pplgen.posterior.latent_variables import is_encoded
from pplgen.posterior.linear_response import MAX_CHEAP_ENTRIES, guide_moments, posterior_covariance
from pplgen.posterior.parameter_names import entry_names
from pplgen.posterior.predictive import sample_rows
from pplgen.posterior.row_likelihood import LogLikelihood
from pplgen.report.console import print_summary
from pplgen.storage import run_folder
from pplgen.story.base import check_choice, check_count
from pplgen.story.full_plates import with_full_plates
from pplgen.story.pair import Pair
from pplgen.story.state_space import StateSpaceStory
from pplgen.timeseries.series_likelihood import log_likelihood
from pplgen.timeseries.state_paths import impute_series

__all__ = ["Fit"]


class Fit(SeriesMethods, LatentMethods, DiagnosticMethods):
    """A trained pair: posterior draws, predictions, diagnostics, saving.

    Attributes are those of ``pplgen.posterior.fitted_pair.FittedPair``.
    """

    def __init__(
        self,
        pair: Pair,
        runs: tuple[Training, ...],
        *,
        table: Table | None,
        seed: int,
        num_failed: int = 0,
        path: str = "",
        origin: dict[str, Any] | None = None,
    ) -> None:
        self.pair, self.runs, self.table = with_full_plates(pair), runs, table
        self.seed, self.num_failed = seed, num_failed
        self.path, self.origin = path, origin or {}
        self.columns: tuple[str, ...] = table.columns if table is not None else tuple(self.origin.get("columns", ()))

    def __repr__(self) -> str:
        return f"<Fit of {self.name}: ELBO {self.elbo:.2f} +- {self.best.elbo_error:.2f}; {self.how}>"

    def to_datatree(
        self, draws: int = 1000, *, groups: Iterable[str] | None = None, seed: int | None = None
    ) -> xr.DataTree:
        """Convert posterior draws to ArviZ's layout; see ``pplgen.posterior.datatree.to_datatree``.

        Without training rows in memory only the ``posterior`` group is available; it is the default for a fit to a
        stream, and requested by ``groups`` for a fit loaded without its data.
        """
        check_count("draws", draws, minimum=2)
        if not self.has_rows:
            if groups is None and self.pair.source is not None:
                groups = ["posterior"]
            if groups is None or set(groups) != {"posterior"}:
                raise InputError(f"{self._without_rows}, or ask for groups=['posterior'] alone")
        facts = {"story": self.name, "seed": self.seed, "elbo": self.elbo, "stop": self.stop.name}
        with self._ready(seed):
            return datatree.to_datatree(
                self.pair, self.columns, draws=draws, groups=groups, attributes=facts, has_rows=self.has_rows
            )

    def summary(self, draws: int = 1000, *, tree: xr.DataTree | None = None) -> None:
        """Print mean, sd and 90 % interval of every parameter, the ELBO, and why the fit stopped.

        ``tree`` contains posterior draws; default: ``draws`` new draws. Where a linear-response standard deviation, see
        ``covariance``, differs from the guide's by more than a tenth, they are printed beside it.
        """
        if tree is None:
            # per-row latents are not printed; if there are no others, two draws suffice
            number = check_count("draws", draws, minimum=2) if self.pair.structure.shared_latent else 2
            options: dict[str, Any] = {"has_rows": self.has_rows, "exclude": self.pair.structure.per_row}
            with self._ready(None):
                tree = datatree.to_datatree(self.pair, self.columns, draws=number, groups=["posterior"], **options)
        print_summary(self, tree, self._response_sds())

    def covariance(self, method: Literal["linear-response", "guide"] = "linear-response") -> pd.DataFrame:
        """Return the posterior covariance of the latents that all rows share, with their entries as index and columns.

        Parameters
        ----------
        method
            ``"linear-response"``: from the response of the ELBO's optimum to a perturbation of the posterior, see
            ``pplgen.posterior.linear_response``. It includes correlations, and standard deviations, that a mean-field
            guide cannot represent. It takes two gradients for each variational parameter. ``"guide"``: that of the
            guide itself, the only one of a Laplace approximation.

        Raises
        ------
        InputError
            If the fit did not end with L-BFGS over fixed draws.
        """
        check_choice("method", method, ("linear-response", "guide"))
        return self._covariance(method)

    def _covariance(self, method: str, max_entries: float = math.inf) -> pd.DataFrame:
        """Return a covariance with named entries; ``max_entries`` as for ``posterior_covariance``."""
        if self.best.mode is not None and method != "guide":
            raise InputError("linear-response covariances are of fits by SVI; for this one see covariance('guide')")
        with self._ready(None):
            if self.best.mode is not None:
                shapes, _, values, _ = guide_moments(self.pair, self.seed)
            else:
                found = posterior_covariance(self.pair, self.best.optimum, self.seed, max_entries)
                shapes, values = found.shapes, found.guide if method == "guide" else found.linear_response
        names = [name for site in entry_names(shapes, self.story, self.columns).values() for name in site]
        return pd.DataFrame(values.cpu().numpy(), index=names, columns=names)

    def _response_sds(self) -> pd.Series | None:
        """Linear-response standard deviations, if they are quickly computed."""
        try:
            covariance = self._covariance("linear-response", MAX_CHEAP_ENTRIES)
        except InputError:
            return None
        return pd.Series(np.sqrt(np.diag(covariance)), index=covariance.index)

    def log_likelihood(
        self, x: Any = None, *, draws: int = 500, estimator: str | None = None, seed: int | None = None
    ) -> LogLikelihood:
        """Return the log posterior predictive density of each row in nats, shape ``(num_rows,)``.

        ``x`` is any input of ``load_data`` (``load_series`` for a state space story, the model's arguments for a bare
        pair), or a stream of ``stream_data``; ``None`` for the training rows. The density is
        ``log mean_s p(x_i | theta_s)`` over draws of the guide; discrete latents are summed out, continuous per-row
        latents integrated out by importance sampling from the guide. For switching stories ``estimator`` is
        ``"gaussian-sum"`` (default), ``"importance"`` (paths of the guide), ``"kim"`` or ``"particle"``. The result's
        ``estimator`` and ``standard_error`` give the method and the Monte Carlo error.
        """
        if isinstance(x, RowStream) and not isinstance(self.story, StateSpaceStory):
            blocks = (Table(block, x.columns, x.name) for block in x.blocks())
            options: dict[str, Any] = {"draws": draws, "estimator": estimator, "seed": seed}
            return LogLikelihood.concatenate([self.log_likelihood(block, **options) for block in blocks])
        rows = self._rows(x)
        with self._ready(seed):
            return log_likelihood(self.pair, rows, check_count("draws", draws), estimator)

    def latents(self, x: Any = None, *, draws: int = 500, seed: int | None = None) -> xr.Dataset:
        """Return the posterior of each row's latents: probabilities of discrete ones, mean and sd of continuous ones.

        ``x`` as in ``log_likelihood``. A mixture's responsibilities are ``fit.latents(x)["z"]``, dimensions
        ``(row, component)``. For series, the result of ``smooth``.
        """
        if self.story is not None and self.story.takes_series:
            return self.smooth(x, draws=draws, seed=seed)
        if is_encoded(self.pair):
            return self.encode(x, seed=seed)
        rows = self._rows(x)
        with self._ready(seed):
            return self._with_identifiers(datatree.row_latents(self.pair, rows, check_count("draws", draws)), x)

    def sample(self, num_rows: int, *, seed: int | None = None) -> Tensor:
        """Draw new rows from a story's posterior predictive distribution, shape ``(num_rows, num_features)``."""
        if self.story is None:
            raise InputError(
                "sample: expected a Story, whose model simulates without data; "
                "to_datatree(groups=['posterior_predictive']) replicates the observed rows of any pair"
            )
        check_count("num_rows", num_rows)
        with self._ready(seed):
            return sample_rows(self.story, self.pair, num_rows).cpu()

    def impute(self, x: Any = None, *, draws: int = 100, seed: int | None = None) -> Tensor:
        """Draw the missing entries of rows given the observed ones, shape ``(draws, num_rows, ...)``.

        ``x`` as in ``log_likelihood``; observed entries are repeated in each draw. With NaN for the upper half of
        pictures this is inpainting, for corrupted pixels denoising, for all but a coarse grid super-resolution; see
        ``latent_plots.plot_inpainting``.
        """
        if self.story is None:
            raise InputError("impute: expected a Story with a method 'complete', not a bare pair")
        rows, number = self._rows(x), check_count("draws", draws)
        with self._ready(seed):
            if self.story.takes_series:
                return impute_series(self.pair, rows, number).cpu()
            return impute_rows(self.story, self.pair, rows, number).cpu()

    def save(self, directory: str | Path, *, force: bool = False) -> None:
        """Write parameters and header to ``directory``; an existing run is replaced only with ``force``.

        ``pplgen.load`` reads it back; for your own story or a bare pair, pass it the code again.
        """
        with run_folder.staged(Path(directory), force=force) as folder:
            self.write(folder)

    def write(self, folder: Path) -> None:
        """Write parameters and header into a folder of ``run_folder.staged``."""
        run_folder.write(folder, self._tensors | saved_buffers(self.pair), {**self.facts, **pair_facts(self.pair)})

    @property
    def facts(self) -> dict[str, Any]:
        """Header of a saved run: story and options, data, training results, versions."""
        return run_header(self, self._training_facts)

    @property
    def data_facts(self) -> dict[str, Any]:
        """Name, length and fingerprint of the training rows; empty for a bare pair."""
        return dict(self.origin.get("data", {})) if self.table is None else table_facts(self.table)

    @property
    def _tensors(self) -> dict[str, Tensor]:
        """Tensors of a saved run: parameters, and history and iterates of the best restart."""
        with self.pair.isolated():
            tensors = {f"parameter/{name}": value for name, value in self.pair.snapshot().items()}
        if all(len(run.final) for run in self.runs):
            tensors["finals"] = torch.from_numpy(np.stack([run.final for run in self.runs]))
        return tensors | self.best.tensors

    @property
    def _training_facts(self) -> dict[str, Any]:
        """Training results for the header of a saved run."""
        return {"best": self.runs.index(self.best), "num_failed": self.num_failed, "runs": [r.facts for r in self.runs]}

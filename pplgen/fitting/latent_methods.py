"""What can be asked of a fit whose rows have codes beside what can be asked of any."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyro
import torch
import xarray as xr
from torch import Tensor

from pplgen.errors import InputError
from pplgen.posterior.fitted_pair import FittedPair
from pplgen.posterior.latent_variables import decode_latents, decoder_input_size, draw_latents, encode_rows
from pplgen.posterior.likelihood import row_log_likelihood
from pplgen.story.base import check_choice, check_count, check_positive
from pplgen.story.latent import LatentStory

__all__ = ["LatentMethods"]

SPAN = 0.9
"""Probability between the first and the last step of a traversal."""
PRIOR_DRAWS = 10_000
"""From which the prior's quantiles are taken."""


class LatentMethods(FittedPair):
    """Verbs of a fit whose rows are decoded from continuous codes; for others each is an ``InputError``.

    ``x`` is whatever ``load_data`` takes, ``None`` for the training rows; NaN is missing.
    """

    def encode(self, x: Any = None, *, seed: int | None = None) -> xr.Dataset:
        """Say where each row's code lies: mean ``z`` and standard deviation ``z_sd``, dimensions ``(row, latent)``.

        They are the guide's, in closed form where its family has one. ``fit.encode(x)["z"].values`` is an array of
        features for whatever comes next; ``fit.decode(fit.encode(x))`` leads back. Where a story has a class beside
        the code, ``y`` are its probabilities, dimensions ``(row, class)``.
        """
        with self._coded("encode", seed) as story:
            mean, sd = (value.cpu().numpy() for value in encode_rows(story, self._rows(x)[0]))
        k = story.num_latents
        variables = {"z": (("row", "latent"), mean[:, :k]), "z_sd": (("row", "latent"), sd[:, :k])}
        if mean.shape[-1] > k:
            variables["y"] = (("row", "class"), mean[:, k:])
        found = xr.Dataset(variables)
        return found.assign_coords({axis: range(size) for axis, size in found.sizes.items()})

    def decode(self, z: Any) -> Tensor:
        """Return the mean of a row at each code, shape ``(..., num_features)`` for codes ``(..., num_latents)``.

        ``z`` is a tensor, an array, nested lists, or what ``encode`` returned, whose means are taken. Where a story has
        a class beside the code, a number for each class follows the code's entries, such as its probability.
        """
        with self._coded("decode", None) as story:
            given = z
            if isinstance(z, xr.Dataset):
                given = np.concatenate([z[name].values for name in ("z", "y") if name in z], axis=-1)
            like = next(iter(story.parameters()))
            try:
                codes = torch.as_tensor(np.asarray(given) if not isinstance(given, Tensor) else given).to(like)
            except (TypeError, ValueError, RuntimeError):
                raise InputError(f"decode: {type(z).__name__} is no array of codes") from None
            if codes.ndim < 1 or codes.shape[-1] != decoder_input_size(story) or not codes.isfinite().all():
                expected = f"finite codes of shape (..., {decoder_input_size(story)})"
                raise InputError(f"decode: codes of shape {tuple(codes.shape)}; expected {expected}")
            return decode_latents(story, codes).cpu()

    def reconstruct(self, x: Any = None, *, seed: int | None = None) -> Tensor:
        """Decode the mean code of each row, shape ``(num_rows, num_features)``; missing entries are filled in too.

        What is returned is the mean of each entry given that one code, seen or not. ``impute`` leaves what is seen as
        it is and draws the rest, uncertain as it is.
        """
        with self._coded("reconstruct", seed) as story:
            return decode_latents(story, encode_rows(story, self._rows(x)[0])[0]).cpu()

    def interpolate(self, a: Any, b: Any, num: int = 9, *, seed: int | None = None) -> Tensor:
        """Walk from rows ``a`` to rows ``b`` on straight lines between their mean codes, decoding each step.

        Parameters
        ----------
        a, b
            One row each, shape ``(num_features,)``, or as many rows in both.
        num
            Steps, the ends among them.
        seed
            Where the guide's means have no closed form.

        Returns
        -------
        Tensor
            Shape ``(num, num_features)``, or ``(num, num_rows, num_features)`` for several rows.
        """
        check_count("num", num, minimum=2)
        ends, single = [], True
        with self._coded("interpolate", seed) as story:
            for given in (a, b):
                one = np.ndim(given) == 1 and not isinstance(given, str)
                single = single and one
                rows = self._rows(np.asarray(given)[None] if one else given)[0]
                ends.append(encode_rows(story, rows)[0])
            if len(ends[0]) != len(ends[1]):
                raise InputError(f"interpolate: {len(ends[0])} rows and {len(ends[1])}; expected as many in both")
            share = torch.linspace(0, 1, num).to(ends[0])[:, None, None]
            walked = decode_latents(story, torch.lerp(ends[0], ends[1], share)).cpu()
        return walked[:, 0] if single else walked

    def traverse(self, base: Any = None, *, num: int = 9, over: str = "prior", seed: int | None = None) -> xr.Dataset:
        """Move one entry of a code at a time, the others at rest, and decode each step.

        Parameters
        ----------
        base
            The row, shape ``(num_features,)``, whose mean code the others rest at; ``None``: their medians.
        num
            Steps, at quantiles of the entry from .05 to .95.
        over
            Of which distribution: the ``prior``, or the ``posterior`` of all training rows together.
        seed
            Of the draws of which the quantiles are.

        Returns
        -------
        xarray.Dataset
            ``x``, the mean of a row at each step, dimensions ``(latent, quantile, feature)``, and ``z``, where the
            entry was, dimensions ``(latent, quantile)``. Where codes are shares that sum to one, the others make room.
        """
        check_choice("over", over, ("prior", "posterior"))
        check_count("num", num, minimum=2)
        levels = np.linspace((1 - SPAN) / 2, (1 + SPAN) / 2, num).round(6)
        with self._coded("traverse", seed) as story:
            if over == "prior":
                drawn = story.prior().sample(torch.Size([PRIOR_DRAWS]))
            else:
                drawn = draw_latents(story, self._rows(None)[0])
            # numpy's, for torch's refuses many rows
            quantiles = np.quantile(drawn.cpu().numpy(), [0.5, *levels], axis=0)
            rest, *steps = torch.as_tensor(quantiles).to(drawn)
            places = torch.stack(steps, -1)[: story.num_latents]
            rest[story.num_latents :] = drawn[:, story.num_latents :].mean(0)  # probabilities of a class
            if base is not None:
                rest = encode_rows(story, self._rows(np.asarray(base)[None])[0])[0][0]
            shares = bool((drawn >= 0).all() and torch.allclose(drawn.sum(-1), torch.ones_like(drawn[:, 0])))
            rest = rest / rest.sum() if shares else rest  # medians of shares sum to less
            codes = rest.expand(len(places), num, -1).clone()
            for latent, places_of_one in enumerate(places):
                if shares:
                    others = 1 - rest[latent].clamp(max=1 - 1e-6)
                    codes[latent] *= ((1 - places_of_one) / others)[:, None]
                codes[latent, :, latent] = places_of_one
            pictures = decode_latents(story, codes).cpu()
        axes = ("latent", "quantile", "feature")
        coords = {"latent": range(len(places)), "quantile": levels, "feature": [*self.columns]}
        variables = {"x": (axes, pictures.numpy()), "z": (axes[:2], places.cpu().numpy())}
        return xr.Dataset(variables, coords={name: values for name, values in coords.items() if len(values)})

    def anomaly(
        self, x: Any = None, *, held_out: Any = None, rate: float = 0.01, draws: int = 200, seed: int | None = None
    ) -> xr.Dataset:
        """Score how unlike what was learned each row is, and say which rows are beyond a threshold.

        The score is minus the importance-weighted log density in nats. Of n rows that are normal, ranked beside it, its
        conformal p-value is ``(1 + #{normal rows that score as high}) / (n + 1)``: whatever the model is worth, a
        normal row that was not fitted is flagged with probability ``rate`` at most.

        Parameters
        ----------
        x
            The rows to score.
        held_out
            Normal rows that the fit has not seen. ``None``: the training rows stand in for them, which score lower than
            new ones do, so that more of these are flagged than ``rate`` says.
        rate
            The false-alarm rate: normal rows that may be flagged, as a share.
        draws
            Codes of each row that are weighed.
        seed
            Of the codes.

        Returns
        -------
        xarray.Dataset
            ``score``, ``p_value`` and ``flagged``, dimension ``row``; ``normal_score`` of the rows that calibrated
            them, dimension ``normal_row``; ``threshold``, which a flagged row's score exceeds.

        Notes
        -----
        Rows must be missing as many entries as those that calibrate, for every entry counts in a density. A density can
        be high at rows of another kind altogether, such as pictures that are smoother than any training picture
        (Nalisnick et al. 2019); the rate holds all the same, what is caught may disappoint.

        References
        ----------
        Laxhammar and Falkman (2010), Conformal prediction for distribution-independent anomaly detection.
        Nalisnick et al. (2019), Do deep generative models know what they don't know?
        """
        if check_positive("rate", rate) >= 1:
            raise InputError(f"rate={rate!r}: expected a share of rows between 0 and 1")
        check_count("draws", draws)
        with self._coded("anomaly", seed):
            # rows alone, for what is known beside them is no part of how unlike others they are
            normal = self._rows(held_out)[: self.pair.num_arguments]
            if len(normal[0]) < math.ceil(1 / rate) - 1:
                needed = f"at least {math.ceil(1 / rate) - 1}"
                raise InputError(f"rate={rate:g}: {len(normal[0])} normal rows cannot tell; expected {needed}")
            against = -row_log_likelihood(self.pair, normal, draws).as_subclass(Tensor).cpu().double()
            rows = self._rows(x)[: self.pair.num_arguments]
            score = against
            if rows[0] is not normal[0]:
                score = -row_log_likelihood(self.pair, rows, draws).as_subclass(Tensor).cpu().double()
        ranked = against.sort().values
        # the rank that a normal row exceeds with probability rate, but for the rounding of rate itself
        rank = math.ceil((1 - rate) * (len(ranked) + 1) - 1e-9)
        threshold = ranked[rank - 1]
        as_high = len(ranked) - torch.searchsorted(ranked, score)
        columns = {
            "score": score,
            "p_value": (1.0 + as_high.double()) / (len(ranked) + 1),
            "flagged": score > threshold,
        }
        variables: dict[str, Any] = {name: ("row", value.numpy()) for name, value in columns.items()}
        variables |= {"normal_score": ("normal_row", against.numpy()), "threshold": threshold.item()}
        by = "training rows" if held_out is None else "held-out rows"
        return xr.Dataset(variables, attrs={"rate": rate, "calibrated_by": by, "draws": draws})

    @contextlib.contextmanager
    def _coded(self, verb: str, seed: int | None) -> Iterator[LatentStory]:
        """Give the story whose codes a verb computes with."""
        story = self.pair.story
        if not isinstance(story, LatentStory):
            name = type(story).__name__ if story else "a bare pair"
            raise InputError(f"{verb}: the rows of {name} have no codes; a latent-variable story's do")
        with self._ready(seed), torch.no_grad(), pyro.validation_enabled(False):
            yield story

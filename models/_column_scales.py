"""Base class of stories of series whose priors have a centre and a scale for each column."""

from __future__ import annotations

from typing import Any

from pplgen.models._starts.kmeans_plus_plus import column_scales
from torch import Tensor

from pplgen.story.base import check_per_feature
from pplgen.story.state_space import StateSpaceStory


class ColumnScales(StateSpaceStory):
    """Buffers ``centre`` and ``scale``, in data units, shape ``(num_features,)`` each, from options or the columns."""

    centre: Tensor
    scale: Tensor

    def set_scales(self, x: Tensor, weights: Tensor | None = None) -> None:
        """Set both from options, else from the columns' means and standard deviations; without rows, 0 and 1."""
        for name, value in zip(("centre", "scale"), column_scales(x, weights), strict=True):
            given = self.config[name]
            self.register_buffer(name, value if given is None else value.new_tensor(given))

    @property
    def constants(self) -> dict[str, Tensor]:
        """Centre and scale of the priors, in data units, shape ``(num_features,)`` each."""
        return {"centre": self.centre, "scale": self.scale}


def scale_options(num_features: int, centre: Any, scale: Any) -> dict[str, list[float] | None]:
    """Return the options as one number per feature, or None, or raise ``InputError``."""
    return {
        "centre": check_per_feature("centre", centre, num_features),
        "scale": check_per_feature("scale", scale, num_features, positive=True),
    }

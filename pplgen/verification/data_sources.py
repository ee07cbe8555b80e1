"""Data sets of claims: shipped with the package, from optional packages, or in a folder of the user."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pplgen.data.table import load_data

__all__ = ["EIGHT_SCHOOLS", "FIRST_GROWTH", "NotAvailable", "Sources", "needs"]

EIGHT_SCHOOLS = ((28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0), (15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0))
"""Estimated effects of coaching and their standard errors (Rubin 1981)."""

FIRST_GROWTH = (
    *(2.59316421, 2.20217133, 0.45827562, 0.9687438, -0.24130757, 0.89647478),
    *(2.05393219, 1.73353648, 0.93871289, -0.46477833, -0.80983406, -1.39763689),
)
"""Growth of real US GNP in percent, 1951Q2 to 1954Q1 (Hamilton 1989)."""


FILES = {
    "posteriordb/low_dim_gauss_mix.json": "data of the posterior of that name in posteriordb: a number N and a list y",
    "posteriordb/hmm_example.json": "as above",
    "series/hamilton_rgnp.csv": (
        "growth of real US GNP in percent, 1951Q2 to 1984Q4 (`rgnp_growth_pct`), and the NBER's "
        "recession indicator (`nber_recession`, 0 or 1): Hamilton (1989), in statsmodels' tests of regime switching"
    ),
    "static_binarized_mnist/binarized_mnist_train.mat": "Larochelle's fixed binarisation of MNIST as MATLAB files",
    "static_binarized_mnist/binarized_mnist_test.mat": "as above",
}
"""Data files that are neither shipped nor installed, by their paths in the user's folder."""


class NotAvailable(Exception):
    """Data or a package that a claim needs are not available."""


def needs(module: str, extra: str) -> None:
    """Raise ``NotAvailable`` if a package is not installed."""
    if find_spec(module) is None:
        raise NotAvailable(f"needs {module}: pip install 'pplgen[{extra}]'")


@dataclass(frozen=True)
class Sources:
    """Access to the data sets of claims, as float64.

    Attributes
    ----------
    folder : Path or None
        Folder with any of ``FILES``.
    """

    folder: Path | None = None

    def faithful(self) -> Tensor:
        """Eruptions and waiting times of Old Faithful in minutes, shape ``(272, 2)``."""
        return load_data("faithful", dtype=torch.float64).values

    def wine(self) -> Tensor:
        """Measurements of wines, each with mean 0 and variance 1, shape ``(178, 13)``."""
        needs("sklearn", "data")
        x = load_data("wine", dtype=torch.float64).values
        return (x - x.mean(0)) / x.std(0, correction=0)

    def nile(self) -> Tensor:
        """Yearly volume of the Nile at Aswan, 1871 to 1970, in 10^8 cubic metres, shape ``(100, 1)``."""
        needs("statsmodels", "data")
        return load_data("nile", dtype=torch.float64).values[:, -1:]

    def first_growth(self) -> Tensor:
        """Growth of real US GNP in percent in twelve quarters, shape ``(12, 1)``."""
        return torch.tensor(FIRST_GROWTH, dtype=torch.float64)[:, None]

    def growth(self) -> Tensor:
        """Growth of real US GNP in percent, 1951Q2 to 1984Q4, shape ``(135, 1)``."""
        return self._hamilton("rgnp_growth_pct")[:, None]

    def recessions(self) -> Tensor:
        """Return the NBER's recession indicator of the same quarters, shape ``(135,)``."""
        return self._hamilton("nber_recession").bool()

    def schools(self) -> tuple[Tensor, Tensor]:
        """Effects of eight schools and their standard errors, shape ``(8,)`` each, as float32."""
        y, sigma = (torch.tensor(values) for values in EIGHT_SCHOOLS)
        return y, sigma

    def posteriordb(self, name: str) -> Tensor:
        """Observations ``y`` of a posterior of posteriordb, shape ``(num_rows,)``."""
        content = json.loads(self._file(f"posteriordb/{name}.json").read_text(encoding="utf-8"))
        return torch.tensor(content["y"], dtype=torch.float64)

    def pixels(self, part: str) -> Tensor:
        """Statically binarised MNIST, ``train`` or ``test``, shape ``(num_images, 784)``."""
        from scipy.io import loadmat

        content: dict[str, Any] = loadmat(str(self._file(f"static_binarized_mnist/binarized_mnist_{part}.mat")))
        (values,) = (value for name, value in content.items() if not name.startswith("__"))
        return torch.from_numpy(values.reshape(-1, 784).astype("float64"))

    def _hamilton(self, column: str) -> Tensor:
        """Return a column of Hamilton's table."""
        with self._file("series/hamilton_rgnp.csv").open(encoding="utf-8", newline="") as file:
            return torch.tensor([float(row[column]) for row in csv.DictReader(file)], dtype=torch.float64)

    def _file(self, name: str) -> Path:
        """Return the path of a file in the folder."""
        if self.folder is None:
            raise NotAvailable(f"needs {name}: --data FOLDER")
        if not (self.folder / name).is_file():
            raise NotAvailable(f"needs {name}, which is not in the folder of --data")
        return self.folder / name

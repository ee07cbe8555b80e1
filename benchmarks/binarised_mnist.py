"""Larochelle's fixed binarisation of MNIST, for comparison with published results; run it for the baseline.

The three MATLAB files are in ``static_binarized_mnist`` of the reference data beside this checkout, or in the folder
named by ``BINARISED_MNIST``. Only the benchmarks read them; the package binarises MNIST itself (``pplgen.binarise``).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from scipy.io import loadmat
from torch import Tensor

from pplgen.data.table import Table

FOLDER = Path(__file__).parents[2] / "shared" / "data" / "static_binarized_mnist"
SHAPES = {"train": (50_000, 784), "valid": (10_000, 784), "test": (10_000, 784)}


def folder() -> Path:
    """Return the folder of the files."""
    return Path(os.environ.get("BINARISED_MNIST") or FOLDER)


def why_absent() -> str | None:
    """Return a message if the files are missing, else ``None``."""
    if (folder() / "binarized_mnist_train.mat").is_file():
        return None
    return f"the fixed binarisation of MNIST is not in {str(folder())!r}; set BINARISED_MNIST to its folder"


def load_binarised(split: str) -> Table:
    """Return binary images, one per row, in single precision.

    Parameters
    ----------
    split
        ``train`` (50,000 rows), ``valid`` or ``test`` (10,000 each).
    """
    pixels = loadmat(folder() / f"binarized_mnist_{split}.mat", variable_names=["X"])["X"]
    if pixels.shape != SHAPES[split] or not ((pixels == 0) | (pixels == 1)).all():
        raise ValueError(f"{split}: expected zeros and ones of shape {SHAPES[split]}, got shape {pixels.shape}")
    columns = tuple(f"pixel_{i}_{j}" for i in range(28) for j in range(28))
    return Table(torch.from_numpy(pixels.astype("float32")), columns, f"binarised-mnist-{split}")


def independent_pixels(train: Tensor, test: Tensor) -> float:
    """Return the mean test log-likelihood in nats of independent pixels with add-one smoothing."""
    count = train.double().sum(dim=0) + 1
    probability = count / (len(train) + 2)
    return float((test.double() @ probability.logit()).mean() + torch.log1p(-probability).sum())


if __name__ == "__main__":
    if reason := why_absent():
        sys.exit(reason)
    train, test = (load_binarised(split).values for split in ("train", "test"))
    print(f"independent pixels: {independent_pixels(train, test):.3f} nats per test image")

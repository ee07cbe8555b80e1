"""Larochelle's fixed binarisation of MNIST, for the figures that were published on it; run it for the baseline.

The three MATLAB files lie in ``static_binarized_mnist`` among the reference data beside this checkout, or in the folder
that ``BINARISED_MNIST`` names. They are read here alone; the package binarises MNIST itself (``pplgen.binarise``).
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
    """Return where the files are looked for."""
    return Path(os.environ.get("BINARISED_MNIST") or FOLDER)


def why_absent() -> str | None:
    """Say in a sentence that the files are not at hand; ``None`` where they are."""
    if (folder() / "binarized_mnist_train.mat").is_file():
        return None
    return f"the fixed binarisation of MNIST is not in {str(folder())!r}; BINARISED_MNIST names another folder"


def load_binarised(split: str) -> Table:
    """Return pictures of zeros and ones, a row each, in single precision.

    Parameters
    ----------
    split
        ``train`` (50,000 rows), ``valid`` or ``test`` (10,000 each).
    """
    pixels = loadmat(folder() / f"binarized_mnist_{split}.mat", variable_names=["X"])["X"]
    if pixels.shape != SHAPES[split] or not ((pixels == 0) | (pixels == 1)).all():
        raise ValueError(f"{split}: expected zeros and ones of shape {SHAPES[split]}, not shape {pixels.shape}")
    columns = tuple(f"pixel_{i}_{j}" for i in range(28) for j in range(28))
    return Table(torch.from_numpy(pixels.astype("float32")), columns, f"binarised-mnist-{split}")


def independent_pixels(train: Tensor, test: Tensor) -> float:
    """Return the mean log-likelihood in nats of test rows where pixels are independent, one row of each value added."""
    count = train.double().sum(dim=0) + 1
    share = count / (len(train) + 2)
    return float((test.double() @ share.logit()).mean() + torch.log1p(-share).sum())


if __name__ == "__main__":
    if reason := why_absent():
        sys.exit(reason)
    train, test = (load_binarised(split).values for split in ("train", "test"))
    print(f"independent pixels: {independent_pixels(train, test):.3f} nats per test picture")

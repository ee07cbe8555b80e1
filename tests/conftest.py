"""What several tests share: reference data, the two fits of Old Faithful, a clean Pyro, how much is tried at random."""

import gc
import os
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from pplgen.models import GaussianMixture

import pplgen

# the tests run side by side, one worker to a core, and so do the processes that they start
THREADS = os.environ.get("PPLGEN_TEST_THREADS", "1")
torch.set_num_threads(int(THREADS))
os.environ.setdefault("OMP_NUM_THREADS", THREADS)
# torch's compiler believes the processor's own list of instructions, and compiles no program to try each
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "1")


def shift_seeds(offset):
    """Add a number to each seed that is given to torch or NumPy, so that every draw is another; equal seeds stay equal.

    A seed that is made from a shifted one is shifted once more, which does no harm. A process that a test starts is
    not shifted, unless it imports this module.
    """
    seed_torch, seed_numpy, default_rng, sequence = (
        torch.manual_seed,
        np.random.seed,
        np.random.default_rng,
        np.random.SeedSequence,
    )

    def moved(seed):
        return seed + offset if isinstance(seed, int | np.integer) and seed >= 0 else seed

    class Generator(torch.Generator):
        def manual_seed(self, seed):
            return super().manual_seed(moved(seed))

    torch.Generator = Generator
    torch.manual_seed = lambda seed: seed_torch(moved(seed))
    # pyro.set_rng_seed calls torch.manual_seed and this, whose seeds have 32 bits
    np.random.seed = lambda seed=None: seed_numpy(seed if seed is None else moved(seed) % 2**32)
    np.random.default_rng = lambda seed=None: default_rng(moved(seed))
    np.random.SeedSequence = lambda entropy=None, **options: sequence(moved(entropy), **options)


ORIGINAL_SEEDERS = [
    (torch, "Generator", torch.Generator),
    (torch, "manual_seed", torch.manual_seed),
    (np.random, "seed", np.random.seed),
    (np.random, "default_rng", np.random.default_rng),
    (np.random, "SeedSequence", np.random.SeedSequence),
]
if SEED_OFFSET := int(os.environ.get("PPLGEN_TEST_SEED_OFFSET", "0")):
    shift_seeds(SEED_OFFSET)

# five tests: 200 cases in all, always the same ones; and 2,500 that differ from night to night
_ALIKE = {"deadline": None, "database": None, "phases": [Phase.explicit, Phase.generate, Phase.shrink]}
_ALIKE["suppress_health_check"] = [HealthCheck.too_slow]
settings.register_profile("ci", max_examples=40, derandomize=True, **_ALIKE)
settings.register_profile("nightly", max_examples=500, print_blob=True, **_ALIKE)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

LONGEST = ("test_tutorials.py", "test_readme.py", "test_killed.py", "test_switching_lds.py", "test_ranks.py")
"""Files of tests that run for minutes: they begin, lest one worker is left with them at the end."""
REFERENCE_DATA = Path(__file__).parents[2] / "shared" / "data"


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in LONGEST)


def pytest_collection_finish():
    """Spare Python's garbage collector the half million objects of imported libraries, a tenth of the suite's time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)


@pytest.fixture(autouse=True)
def _fresh_pyro():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


@pytest.fixture
def readers_seeds(monkeypatch):
    """Seeds without the offset, for tests whose assertions are about particular draws."""
    for module, name, original in ORIGINAL_SEEDERS:
        monkeypatch.setattr(module, name, original)


@pytest.fixture(scope="session")
def faithful():
    return pplgen.load_data("faithful", dtype=torch.float64)


@pytest.fixture(scope="session")
def wine():
    """Thirteen measurements of 178 wines, each with mean 0 and variance 1."""
    x = pplgen.load_data("wine", dtype=torch.float64).values
    return (x - x.mean(0)) / x.std(0, correction=0)


@pytest.fixture(scope="session")
def faithful_fit():
    """Old Faithful with the default settings."""
    return pplgen.fit(GaussianMixture(num_components=2, num_features=2), "faithful", progress=False)


@pytest.fixture(scope="session")
def faithful_tree(faithful_fit):
    return faithful_fit.to_datatree(draws=1000)


@pytest.fixture
def reference_data():
    """Folder of reference data sets beside the checkout."""
    if not REFERENCE_DATA.is_dir():
        pytest.skip("the folder of reference data is not beside this checkout")
    return REFERENCE_DATA

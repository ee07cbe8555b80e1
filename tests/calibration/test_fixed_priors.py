"""Priors of every story can be fixed by options; without these, a fit takes them from its rows."""

import pytest
import torch
from pplgen.models import (
    DirichletProcessMixture,
    GaussianHMM,
    GaussianMixture,
    LinearGaussianSSM,
    MarkovSwitchingAR,
    MixedMixture,
    SwitchingLDS,
)

from pplgen.calibration.fixed_priors import fix_priors
from pplgen.errors import InputError

STORIES = {
    "gaussian-mixture": GaussianMixture(2, 2),
    "dirichlet-process-mixture": DirichletProcessMixture(4, 2),
    "mixed-mixture": MixedMixture(2, 4, columns="normal,poisson,binary,student"),
    "gaussian-hmm": GaussianHMM(2, 1),
    "markov-switching-ar": MarkovSwitchingAR(2, 1),
    "linear-gaussian-ssm": LinearGaussianSSM(2, 2),
    "switching-lds": SwitchingLDS(2, 2, 2),
}


@pytest.mark.parametrize("name", STORIES)
def test_fixed_priors_do_not_depend_on_the_rows(name):
    fixed = fix_priors(STORIES[name])
    before = {key: value.clone() for key, value in fixed.constants.items()}
    x = fixed.simulate(20)
    fixed.initialise(x)
    for key, value in fixed.constants.items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)
    free = type(fixed)(**STORIES[name].config)
    free.initialise(x)
    assert any(not torch.equal(value, before[key]) for key, value in free.constants.items())


@pytest.mark.parametrize("options", [{"form": "level"}, {"form": "trend"}, {"form": "autoregression"}, {}])
def test_series_have_the_units_of_centre_and_scale(options):
    """The priors are a location-scale family of the data: other units give the same series in these units."""

    def simulated(**units):
        torch.manual_seed(3)
        return LinearGaussianSSM(**options, **units).simulate(5)

    # rounding of float32 sums over 100 steps
    torch.testing.assert_close(simulated(centre=50.0, scale=4.0), 50 + 4 * simulated(), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LinearGaussianSSM(2, 2, scale=-1.0), "scale=-1.0: expected one positive"),
        (lambda: SwitchingLDS(2, 2, 2, centre=[0.0]), "one for each of 2 features"),
        (lambda: MixedMixture(2, 2, columns="normal,poisson", prior_mean=-1.0), "positive mean of its rate"),
        (lambda: MarkovSwitchingAR(2, 1, prior_mean=[1.0, 2.0, 3.0]), "one list for each of 2 regimes"),
    ],
)
def test_priors_that_cannot_be_are_refused(build, message):
    with pytest.raises(InputError, match=message):
        build()


def test_one_prior_mean_per_regime():
    assert MarkovSwitchingAR(2, 1, prior_mean=[1.0, 2.0]).constants["prior_mean"].tolist() == [1.0, 2.0]

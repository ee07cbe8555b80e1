"""The estimator passes scikit-learn's own checks and agrees with its EM."""

import numpy as np
import pytest

pytest.importorskip("sklearn")

from sklearn import mixture
from sklearn.base import clone
from sklearn.utils.estimator_checks import parametrize_with_checks

from pplgen.sklearn import GaussianMixture


@parametrize_with_checks([GaussianMixture(n_components=2, max_iter=5, random_state=0)])
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def fitted(faithful):
    return GaussianMixture(2, random_state=0).fit(faithful.values.numpy())


def test_agrees_with_em_on_old_faithful(fitted, faithful):
    x = faithful.values.numpy()
    theirs = mixture.GaussianMixture(2, random_state=0).fit(x)
    ours, reference = fitted.means_[:, 0].argsort(), theirs.means_[:, 0].argsort()
    np.testing.assert_allclose(fitted.means_[ours], theirs.means_[reference], rtol=0.01)
    np.testing.assert_allclose(fitted.weights_[ours], theirs.weights_[reference], atol=0.02)
    assert (fitted.predict(x) == ours[0]).sum() == pytest.approx((theirs.predict(x) == reference[0]).sum(), abs=2)
    assert fitted.score(x) == pytest.approx(theirs.score(x), abs=0.02)
    assert fitted.bic() == pytest.approx(theirs.bic(x), abs=3.0)
    assert fitted.covariances_.shape == (2, 2, 2)
    assert fitted.converged_


def test_the_rest_of_the_interface(fitted, faithful):
    x = faithful.values.numpy().copy()
    np.testing.assert_allclose(fitted.predict_proba(x).sum(1), 1.0)
    x[0, 1] = np.nan
    assert np.isfinite(fitted.score_samples(x)).all()
    rows, labels = fitted.sample(20)
    assert rows.shape == (20, 2)
    assert set(labels) <= {0, 1}
    assert clone(fitted).get_params() == fitted.get_params()


@pytest.mark.parametrize(("kind", "shape"), [("tied", (2, 2)), ("diag", (3, 2)), ("spherical", (3,))])
def test_covariances_have_scikit_learns_shapes(faithful, kind, shape):
    x = faithful.values.numpy()
    ours = GaussianMixture(3, covariance_type=kind, max_iter=200, random_state=0).fit(x)
    theirs = mixture.GaussianMixture(3, covariance_type=kind).fit(x)
    assert ours.covariances_.shape == shape == theirs.covariances_.shape

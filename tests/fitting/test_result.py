"""A fit's verbs, and its way to disk and back."""

import json

import numpy as np
import pytest
import torch
from pplgen.models import GaussianMixture

import pplgen
from pplgen.errors import InputError
from pplgen.exact.em import GaussianMixtureParameters, e_step
from pplgen.storage import run_folder
from pplgen.storage.header import with_digest


@pytest.fixture
def run(faithful_fit, tmp_path):
    faithful_fit.save(tmp_path / "run")
    return tmp_path / "run"


def alter(run, **changes):
    """Write another header, as if it had always been so."""
    header = json.loads((run / run_folder.HEADER).read_text())
    (run / run_folder.HEADER).write_text(json.dumps(with_digest(header | changes)))


def test_responsibilities_and_row_densities(faithful_fit, faithful_tree, faithful):
    """Averages over draws lie close to the exact values at the posterior mean."""
    mean = faithful_tree["posterior"].to_dataset().mean(("chain", "draw"))
    parameters = (torch.tensor(mean[n].values, dtype=torch.float64) for n in ("weights", "mu", "Sigma"))
    responsibilities, log_likelihood = e_step(faithful.values, GaussianMixtureParameters(*parameters))
    latents = faithful_fit.latents(faithful)
    assert latents["z"].dims == ("row", "component")
    np.testing.assert_allclose(latents["z"].sum("component"), 1.0, rtol=1e-5)
    # rows between the two clusters move most with the parameters
    assert np.abs(latents["z"].values - responsibilities.numpy()).max() < 0.1
    ours = faithful_fit.log_likelihood("faithful")
    assert ours.shape == (272,)
    assert ours.sum().item() == pytest.approx(log_likelihood.item(), abs=3.0)
    torch.testing.assert_close(faithful_fit.log_likelihood(), ours)


def test_new_rows_look_like_the_old(faithful_fit, faithful):
    rows = faithful_fit.sample(4000)
    assert rows.shape == (4000, 2)
    spread = faithful.values.std(dim=0)
    # the model reproduces mean and deviation of the data; four standard errors of either sample's mean
    error = 4 * spread * (1 / 272 + 1 / 4000) ** 0.5
    assert ((rows.mean(dim=0) - faithful.values.mean(dim=0)).abs() < error).all()
    torch.testing.assert_close(rows.double().std(dim=0), spread, rtol=0.1, atol=0)
    assert not torch.equal(rows[:3], faithful_fit.sample(4000, seed=9)[:3])


def test_columns_are_matched_by_name(faithful_fit, faithful):
    swapped = pplgen.Table(faithful.values[:, [1, 0]], ("waiting", "eruptions"), "swapped")
    expected = faithful_fit.log_likelihood(faithful, draws=5)
    torch.testing.assert_close(faithful_fit.log_likelihood(swapped, draws=5), expected)
    with pytest.warns(pplgen.errors.DataWarning, match="the rows have no column names"):
        torch.testing.assert_close(faithful_fit.log_likelihood(faithful.values.numpy(), draws=5), expected)
    with pytest.raises(InputError, match="no column 'waiting'; expected the training columns eruptions, waiting"):
        faithful_fit.log_likelihood(pplgen.Table(faithful.values, ("eruptions", "b"), "other"))


def test_summary_prints_table_bound_and_reason(faithful_fit, faithful_tree, capsys):
    faithful_fit.summary(tree=faithful_tree)
    printed = " ".join(capsys.readouterr().out.split())
    for expected in ("GaussianMixture on faithful, 272 rows", "mu[1, waiting]", "ELBO -118", faithful_fit.how):
        assert expected in printed
    assert "scale_tril" not in printed
    assert "GaussianMixture" in repr(faithful_fit)


def test_round_trip(faithful_fit, run):
    again = pplgen.load(run)
    assert again.story.config == faithful_fit.story.config
    assert again.elbo == faithful_fit.elbo
    assert again.stop is faithful_fit.stop
    np.testing.assert_array_equal(again.best.history, faithful_fit.best.history)
    torch.testing.assert_close(again.sample(5), faithful_fit.sample(5))
    torch.testing.assert_close(again.log_likelihood("faithful", draws=5), faithful_fit.log_likelihood(draws=5))
    with pytest.raises(InputError, match="loaded without its data"):
        again.to_datatree()
    with pytest.raises(InputError, match="loaded without its data"):
        again.log_likelihood()
    whole = pplgen.load(run, "faithful")
    # the same draws, up to rounding of sums in single precision
    np.testing.assert_allclose(
        whole.to_datatree(3)["sample_stats"]["lp"], faithful_fit.to_datatree(3)["sample_stats"]["lp"], rtol=1e-6
    )
    again.save(run.parent / "copy")
    assert (run.parent / "copy" / run_folder.TENSORS).read_bytes() == (run / run_folder.TENSORS).read_bytes()


def test_other_data_are_refused(run, faithful):
    with pytest.raises(InputError, match="is not the data of this run, which was fitted to 'faithful' with 272 rows"):
        pplgen.load(run, faithful.values[:100])


def test_a_run_is_not_overwritten_unless_told(faithful_fit, run):
    before = (run / run_folder.HEADER).read_bytes()
    with pytest.raises(InputError, match="already contains a run"):
        faithful_fit.save(run)
    assert (run / run_folder.HEADER).read_bytes() == before
    (run / "fit.png").write_bytes(b"of the old run")
    (run / "notes.txt").write_text("mine")
    faithful_fit.save(run, force=True)
    assert {path.name for path in run.iterdir()} == {run_folder.HEADER, run_folder.TENSORS, "notes.txt"}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"story": "os:system"}, "only stories of the collection are imported by name"),
        ({"story": "pplgen.models.gaussian_mixture:torch"}, "is not a Story"),
        ({"story": "pplgen.models.dirichlet_process_mixture:Story"}, "is not a Story"),
        ({"story": "pplgen.models.gaussian_mixture:GaussianRows"}, "is not a Story"),
        ({"story": "pplgen.models.missing:Story"}, "has no such story"),
        ({"story": "pplgen.models.ppca:PPCA"}, "does not describe a run|buffer .* has shape"),
        ({"config": {"num_components": 0}}, "num_components=0"),
        ({"config": {"num_components": 3}}, "buffer .* has shape"),
        ({"config": {"colour": 1}}, "does not describe a run .*unexpected keyword argument 'colour'"),
        ({"config": {"num_features": 3}}, "buffer .* has shape"),
        ({"columns": ["a"]}, "names 1 columns; the story has 2"),
        ({"runs": []}, "expected an index of the 0 runs"),
        ({"dtype": "int32"}, "'dtype' is 'int32'; expected 'float32' or 'float64'"),
        ({"seed": "a"}, "'seed' is 'a'; expected a whole number"),
    ],
)
def test_altered_headers(run, changes, sentence):
    alter(run, **changes)
    with pytest.raises(InputError, match=sentence):
        pplgen.load(run)


def test_a_stop_that_this_version_does_not_know(run):
    header = json.loads((run / run_folder.HEADER).read_text())
    alter(run, runs=[header["runs"][0] | {"stop": "TIRED"}])
    with pytest.raises(InputError, match=r"does not describe a run .*TIRED"):
        pplgen.load(run)


def test_loading_leaves_the_callers_generator_alone(run):
    state = torch.get_rng_state()
    pplgen.load(run)
    assert torch.equal(torch.get_rng_state(), state)


def test_seeds_of_any_size(faithful_fit):
    assert faithful_fit.sample(2, seed=2**40).shape == (2, 2)
    with pytest.raises(InputError, match="seed=-1: expected a whole number of at least 0"):
        faithful_fit.sample(2, seed=-1)


def test_long_tables_are_cut_with_a_word(capsys):
    fit = pplgen.fit(GaussianMixture(3, 6), torch.randn(40, 6), steps=3, progress=False)
    fit.summary(draws=5)
    assert "more: arviz_stats.summary" in capsys.readouterr().out


def test_log_likelihoods_say_how_they_were_computed(faithful_fit):
    ours = faithful_fit.log_likelihood(draws=50)
    assert ours.estimator == "exact"
    # the standard error is what another set of draws changes: some row among 272 by up to four of them
    other = faithful_fit.log_likelihood(draws=50, seed=5)
    assert ((ours - other).abs() < 5 * (ours.standard_error.square() + other.standard_error.square()).sqrt()).all()
    assert (ours - other).abs().mean() > 0.2 * ours.standard_error.mean()
    assert "exact, standard errors up to" in repr(ours)
    with pytest.raises(InputError, match="estimator='importance': expected 'exact' for GaussianMixture"):
        faithful_fit.log_likelihood(estimator="importance")

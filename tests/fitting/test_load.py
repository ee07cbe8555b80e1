"""Runs of a user's own code, in another type or on another device, and what does not belong together."""

import dataclasses
import hashlib
import json
import shutil
import sys
import textwrap
from collections import namedtuple

import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pplgen.models import PPCA, VAE, GaussianMixture
from pyro.infer.autoguide import AutoMultivariateNormal
from torch import nn

import pplgen
from pplgen import InputError
from pplgen.cli.main import main
from pplgen.errors import DataWarning
from pplgen.storage import run_folder
from pplgen.storage.header import with_digest

QUICK = {"steps": 30, "compile": "off", "progress": False}
OWN = '''
import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroParam

from pplgen.story.base import Story, pyro_method


class Level(Story):
    """Rows around one level."""

    dims = {"mu": ("feature",)}

    def __init__(self, num_features=2, width=1.0):
        super().__init__(num_features=num_features, width=width)
        self.width = width
        self.loc = PyroParam(torch.zeros(num_features))

    @pyro_method
    def model(self, x=None, num_rows=1):
        mu = pyro.sample("mu", dist.Normal(torch.zeros_like(self.loc), 9.0).to_event(1))
        rows = num_rows if x is None else len(x)
        with pyro.plate("data", rows):
            return pyro.sample("x", dist.Normal(mu, self.width).to_event(1), obs=x)

    @pyro_method
    def guide(self, x=None, num_rows=1):
        pyro.sample("mu", dist.Normal(self.loc, 0.1).to_event(1))
'''


@pytest.fixture(scope="module")
def rows():
    return torch.randn(40, 2, generator=torch.Generator().manual_seed(0)) + 3.0


@pytest.fixture(scope="module")
def own(tmp_path_factory, rows):
    """A user's file, and a run of its story."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "mymodel.py").write_text(OWN)
    from pplgen.storage.user_code import story_in_file

    story = story_in_file(f"{folder / 'mymodel.py'}:Level")
    pplgen.fit(story(width=2.0), rows, **QUICK).save(folder / "run")
    return folder


def command(monkeypatch, *arguments):
    """Run the command line; return its exit code."""
    monkeypatch.setattr(sys, "argv", ["pplgen", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


def test_a_users_own_story_is_rebuilt_from_the_file_that_is_given(own, rows, monkeypatch, capsys):
    reference = f"{own / 'mymodel.py'}:Level"
    again = pplgen.load(own / "run", rows, story=reference)
    kind = type(again.story)
    assert (kind.__module__, again.story.config) == ("mymodel.py", {"num_features": 2, "width": 2.0})
    assert again.story.loc.min() > 0.1  # thirty steps of .02 towards 3
    for given in (kind, kind(width=2.0)):
        other = pplgen.load(own / "run", story=given)
        torch.testing.assert_close(other.log_likelihood(rows, draws=5), again.log_likelihood(draws=5))
    again.save(own / "copy", force=True)
    assert (own / "copy" / run_folder.TENSORS).read_bytes() == (own / "run" / run_folder.TENSORS).read_bytes()
    assert command(monkeypatch, "sample", own / "run", "-n", 2, "--story", reference) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_nothing_that_a_run_names_is_executed(own, tmp_path, monkeypatch, capsys):
    shutil.copytree(own / "run", tmp_path / "run")
    (tmp_path / "run" / "mymodel.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n{OWN}")
    monkeypatch.chdir(tmp_path / "run")
    monkeypatch.syspath_prepend(tmp_path / "run")
    header = json.loads((tmp_path / "run" / run_folder.HEADER).read_text())
    for name in ("mymodel:Level", "mymodel.py:Level", "run.mymodel:Level", "pplgen.models.:Level", "os:system"):
        (tmp_path / "run" / run_folder.HEADER).write_text(json.dumps(with_digest(header | {"story": name})))
        with pytest.raises(InputError, match="no other code that a run names is executed; give your own with story="):
            pplgen.load(tmp_path / "run")
    assert command(monkeypatch, "sample", tmp_path / "run") == 2
    assert "or --story FILE.py:CLASS" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


def test_a_story_whose_code_has_changed_is_a_warning(own, tmp_path):
    (tmp_path / "mymodel.py").write_text(OWN.replace("9.0", "5.0"))
    with pytest.warns(DataWarning, match="the code of Level has changed since this run"):
        pplgen.load(own / "run", story=f"{tmp_path / 'mymodel.py'}:Level")


@pytest.mark.parametrize(
    ("story", "sentence"),
    [
        ("mymodel.py", "expected FILE.py:CLASS, such as mymodel.py:MyStory"),
        ("mymodel:Level", "expected FILE.py:CLASS"),
        ("mymodel.py:Level.model", "expected FILE.py:CLASS"),
        ("other.py:Level", "there is no file 'other.py'"),
        ("mymodel.py:Levle", "has no story 'Levle'; it has Level; did you mean 'Level'?"),
        ("mymodel.py:torch", "has no story 'torch'"),
        ("broken.py:Level", "'broken.py' cannot be executed: SyntaxError"),
        (GaussianMixture, "story 'GaussianMixture' was given, but the run is of 'Level'"),
        (dict, "expected a subclass of Story"),
    ],
)
def test_stories_that_are_none_or_another(own, monkeypatch, story, sentence):
    (own / "broken.py").write_text("class Level(:")
    monkeypatch.chdir(own)
    with pytest.raises(InputError, match=sentence.replace("?", r"\?")):
        pplgen.load(own / "run", story=story)


def test_a_story_of_modules_is_rebuilt_from_an_untrained_one(tmp_path, rows):
    def untrained(width):
        """A VAE with an encoder of the caller's."""
        return VAE(num_features=2, num_latents=1, hidden=[4], likelihood="normal", encoder=nn.Linear(width, 2))

    fit = pplgen.fit(untrained(2), rows, **QUICK)
    fit.save(tmp_path / "run")
    again = pplgen.load(tmp_path / "run", story=untrained(2))
    torch.testing.assert_close(again.encode(rows)["z"].values, fit.encode(rows)["z"].values, rtol=0, atol=0)
    with pytest.raises(InputError, match=r"parameter '.*' has shape|buffer '.*' has shape"):
        pplgen.load(tmp_path / "run")
    other = VAE(num_features=2, num_latents=1, hidden=[5], likelihood="normal", encoder=nn.Linear(2, 2))
    with pytest.raises(InputError, match=r"its options are .*; expected those of the run"):
        pplgen.load(tmp_path / "run", story=other)


def schools(y, sigma):
    """Estimate schools' effects."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    with pyro.plate("data", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, 3.0))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


EFFECTS = torch.tensor([28.0, 8.0, -3.0, 7.0]), torch.tensor([15.0, 10.0, 16.0, 11.0])


class Regression(nn.Module):
    """A network that normalises its batches, whose running mean is a buffer."""

    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1))

    def forward(self, x, y):
        pyro.module("network", self.network)
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(self.network(x)[:, 0], scale), obs=y)


@pytest.mark.parametrize("method", ["svi", "nuts"])
def test_a_bare_pair_comes_back_with_its_code_and_data(tmp_path, method):
    options = {"steps": 20, "warm_up": 20} if method == "nuts" else {"steps": 20}
    fit = pplgen.fit(schools, EFFECTS, method=method, compile="off", progress=False, **options)
    fit.save(tmp_path / "run")
    again = pplgen.load(tmp_path / "run", EFFECTS, model=schools)
    ours, theirs = (each.to_datatree(20)["posterior"].to_dataset() for each in (again, fit))
    assert ours.equals(theirs)
    header = json.loads((tmp_path / "run" / run_folder.HEADER).read_text())
    assert header["pair"]["model"].endswith(":schools")
    again.save(tmp_path / "copy")
    assert (tmp_path / "copy" / run_folder.TENSORS).read_bytes() == (tmp_path / "run" / run_folder.TENSORS).read_bytes()


def test_buffers_of_a_bare_pairs_modules_come_back(tmp_path, rows):
    data = rows, rows.sum(1)
    fit = pplgen.fit(Regression(), data, **QUICK)
    fit.save(tmp_path / "run")
    again = pplgen.load(tmp_path / "run", data, model=Regression())
    means = [each.pair.model.network[0].running_mean for each in (fit, again)]
    assert means[0].min() > 1.0  # on the way from 0 to the rows' 3
    torch.testing.assert_close(*means, rtol=0, atol=0)


def test_bare_pairs_that_do_not_belong_to_the_run(tmp_path):
    fit = pplgen.fit(schools, EFFECTS, **QUICK)
    fit.save(tmp_path / "run")

    def renamed(y, sigma):
        mu = pyro.sample("mean", dist.Normal(0.0, 5.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(pyro.sample("theta", dist.Normal(mu, 3.0)), sigma), obs=y)

    def wider(y, sigma):
        mu = pyro.sample("mu", dist.Normal(0.0, 50.0))
        with pyro.plate("data", len(y)):
            theta = pyro.sample("theta", dist.Normal(mu, 3.0))
            pyro.sample("y", dist.Normal(theta, sigma), obs=y)

    load = pplgen.load
    with pytest.raises(
        InputError, match=r"the run is of a bare pair, .*schools and .*AutoNormal: give its data, model"
    ):
        load(tmp_path / "run")
    with pytest.raises(InputError, match="the data, labels or weights are not those of this run"):
        load(tmp_path / "run", (EFFECTS[0] + 1, EFFECTS[1]), model=schools)
    with pytest.raises(InputError, match=r"parameter 'AutoNormal.locs.me"):
        load(tmp_path / "run", EFFECTS, model=renamed)
    with pytest.raises(InputError, match=r"parameter 'Auto.* has shape"):
        load(tmp_path / "run", EFFECTS, model=schools, guide=AutoMultivariateNormal(schools))
    with pytest.raises(InputError, match="convert the data instead"):
        load(tmp_path / "run", EFFECTS, model=schools, dtype=torch.float64)
    with pytest.raises(InputError, match="story: the run is of a bare pair"):
        load(tmp_path / "run", EFFECTS, model=schools, story=PPCA)
    with pytest.warns(DataWarning, match="has changed since this run"):
        load(tmp_path / "run", EFFECTS, model=wider)


@dataclasses.dataclass
class Schools:
    effects: object


Named = namedtuple("Named", "effects")
Y = EFFECTS[0]
CONTAINERS = [
    (lambda y: ({"effects": y},), lambda data: data["effects"]),
    (lambda y: [y], lambda data: data[0]),
    (lambda y: (Named(y),), lambda data: data.effects),
    (Schools, lambda data: data.effects),
    (lambda y: ({"inner": [Schools(y)]},), lambda data: data["inner"][0].effects),
    (lambda y: pd.Series(y.tolist()), lambda data: torch.tensor(data.tolist())),
    (lambda y: ({"effects": y.numpy()},), lambda data: torch.as_tensor(data["effects"])),
    (lambda y: ([each.item() for each in y],), torch.tensor),
    (lambda y: y.to_sparse(), lambda data: data.to_dense()),
]


@pytest.mark.parametrize(("wrap", "unwrap"), CONTAINERS)
def test_data_in_containers_are_those_of_the_run(tmp_path, wrap, unwrap):
    def model(data):
        schools(unwrap(data), EFFECTS[1])

    pplgen.fit(model, wrap(Y), compile="off", steps=20, progress=False).save(tmp_path / "run")
    assert pplgen.load(tmp_path / "run", wrap(Y.clone()), model=model).elbo < 0
    with pytest.raises(InputError, match="the data, labels or weights are not those of this run"):
        pplgen.load(tmp_path / "run", wrap(Y + 1), model=model)


def test_a_run_that_records_only_the_types_of_containers_is_loaded(tmp_path):
    def model(data):
        schools(data["effects"], EFFECTS[1])

    data = ({"effects": Y},)
    pplgen.fit(model, data, compile="off", steps=20, progress=False).save(tmp_path / "run")
    path = tmp_path / "run" / run_folder.HEADER
    header = json.loads(path.read_text()) | {"arguments_sha256": hashlib.sha256(b"dict").hexdigest()}
    path.write_text(json.dumps(with_digest(header)))
    assert pplgen.load(tmp_path / "run", data, model=model).elbo < 0


@pytest.mark.parametrize("own", [torch.float32, torch.float64])
@pytest.mark.parametrize("wanted", [torch.float32, torch.float64])
def test_runs_move_between_types(tmp_path, rows, own, wanted):
    # not exact in float32, so that its fingerprint depends on the type
    x, weights = rows.double() / 3, torch.linspace(0.1, 1.0, 40, dtype=torch.float64)
    pplgen.fit(GaussianMixture(2, 2), x.to(own), weights=weights, **QUICK).save(tmp_path / "run")
    fit = pplgen.load(tmp_path / "run", x, weights=weights, dtype=wanted)
    assert {value.dtype for value in fit.story.parameters()} == {wanted}
    assert {value.dtype for value in fit.story.buffers() if value.is_floating_point()} == {wanted}
    assert fit.table.values.dtype == fit.table.weights.dtype == fit.sample(3).dtype == wanted
    assert fit.log_likelihood(draws=5).dtype == wanted
    # what float32 rounds of the parameters is all that differs
    for moved, kept in zip(fit.story.parameters(), pplgen.load(tmp_path / "run").story.parameters(), strict=True):
        torch.testing.assert_close(moved.double(), kept.double(), rtol=1e-6, atol=1e-6)
    fit.save(tmp_path / "copy")
    assert json.loads((tmp_path / "copy" / run_folder.HEADER).read_text())["dtype"] == str(wanted).removeprefix(
        "torch."
    )
    assert pplgen.load(tmp_path / "copy", x, weights=weights).has_rows  # by the fingerprint in the first type
    with pytest.raises(InputError, match=r"dtype=.*: expected one of float32, float64"):
        pplgen.load(tmp_path / "run", dtype=torch.float16)


def test_draws_of_a_sampler_move_between_types(tmp_path, rows):
    fit = pplgen.fit(GaussianMixture(1, 2), rows, method="nuts", steps=10, warm_up=10, restarts=1, progress=False)
    fit.save(tmp_path / "run")
    again = pplgen.load(tmp_path / "run", rows, dtype=torch.float64)
    assert again.log_likelihood(draws=5).dtype == torch.float64


def test_devices(tmp_path, rows):
    pplgen.fit(GaussianMixture(2, 2), rows, **QUICK).save(tmp_path / "run")
    assert pplgen.load(tmp_path / "run", device="cpu").story.q_weights.device.type == "cpu"
    with pytest.raises(InputError, match="device='meta' is not available here"):
        pplgen.load(tmp_path / "run", device="meta")
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU to move a run to")
    moved = pplgen.load(tmp_path / "run", rows, device="cuda")
    assert moved.story.q_weights.device.type == "cuda"
    moved.save(tmp_path / "copy")
    torch.testing.assert_close(
        pplgen.load(tmp_path / "copy").log_likelihood(rows, draws=5), moved.log_likelihood(draws=5).cpu()
    )


def test_another_storys_weights_are_refused(tmp_path, rows):
    for name, story in (("mixture", GaussianMixture(2, 2)), ("ppca", PPCA(num_features=2, num_latents=1))):
        pplgen.fit(story, rows, **QUICK).save(tmp_path / name)
    shutil.copy(tmp_path / "ppca" / run_folder.TENSORS, tmp_path / "mixture" / run_folder.TENSORS)
    with pytest.raises(InputError, match="is not the file that its header describes"):
        pplgen.load(tmp_path / "mixture")
    header, other = (json.loads((tmp_path / name / run_folder.HEADER).read_text()) for name in ("mixture", "ppca"))
    digest = {"parameters_sha256": other["parameters_sha256"]}
    (tmp_path / "mixture" / run_folder.HEADER).write_text(json.dumps(with_digest(header | digest)))
    with pytest.raises(InputError, match=r"(buffer|parameter) '.*' has shape .*; expected .*"):
        pplgen.load(tmp_path / "mixture")


def test_classes_are_told_by_their_code_and_what_they_derive_from(tmp_path):
    from pplgen.storage.user_code import code_digest, story_in_file

    digests = set()
    for number, width in enumerate((1.0, 1.0, 2.0)):
        path = tmp_path / f"kin{number}.py"
        path.write_text(
            OWN
            + textwrap.dedent(f"""

        class Base(Level):
            width = {width}


        class Child(Base):
            pass
        """)
        )
        digests.add(code_digest(story_in_file(f"{path}:Child")))
    assert len(digests) == 2
    assert code_digest(GaussianMixture) is None


@pytest.mark.parametrize("sites", [None, ["bartlett_diagonal", "bartlett_lower", "mu", "weights"]])
def test_a_named_guide_of_other_sites_is_refused(tmp_path, rows, sites):
    """Its parameters are one vector for all sites, which says nothing of what they mean."""
    fit = pplgen.fit(GaussianMixture(2, 2), rows, "full-rank", steps=100, optimiser="adam", progress=False)
    fit.save(tmp_path / "run")
    path = tmp_path / "run" / run_folder.HEADER
    header = json.loads(path.read_text())
    assert header["sites"] == ["mu", "scale_tril", "weights"]
    header.pop("sites")
    former = header if sites is None else header | {"sites": sites}
    path.write_text(json.dumps(with_digest(former)))
    with pytest.raises(InputError, match="this one draws mu, scale_tril, weights: fit it again"):
        pplgen.load(tmp_path / "run", rows)

"""A report is a self-contained page that shows the checks and escapes all text."""

import contextlib
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pplgen.models import (
    PPCA,
    VAE,
    GaussianHMM,
    GaussianMixture,
    LinearGaussianSSM,
    MarkovSwitchingAR,
    MixedMixture,
    SwitchingLDS,
)

import pplgen
from pplgen.checks.registry import Check, Verdict
from pplgen.cli.main import main
from pplgen.fitting.load import load_with_draws
from pplgen.report import posterior_figures
from pplgen.report.page import FORMAT, PAGE, RECORD, overall, write_report
from pplgen.report.reproduction import Block, blocks_of
from pplgen.storage import run_folder

QUICK = {"steps": 5, "compile": "off", "progress": False}
HOSTILE = "<script>alert(1)</script>"
VOID = {"meta", "br", "link", "img", "hr", "input"}


class Page(HTMLParser):
    """A page: its elements with their attributes, its text, and whether every element is closed in turn."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.texts, self.balanced = [], [], [], True
        self.feed(text)
        self.close()
        self.balanced = self.balanced and not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        self.balanced = self.balanced and bool(self.open) and self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def read(folder):
    """Return the page and the record of a report, after what holds for every one."""
    text = (folder / PAGE).read_text(encoding="utf-8")
    page, record = Page(text), json.loads((folder / RECORD).read_text())
    assert page.balanced
    assert len(text) < 2_000_000
    assert "http:" not in text and "https:" not in text  # noqa: PT018
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.elements}
    for _, attributes in page.elements:
        for key in ("src", "href", "data", "action"):
            assert attributes.get(key, "#").startswith(("#", "data:image/png;base64,"))
        assert not any(key.startswith("on") for key in attributes)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    referred = re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"|aria-\w+="([^"]+)"', text)
    assert {next(filter(None, each)) for each in referred} <= set(ids)
    svgs = [attributes for tag, attributes in page.elements if tag == "svg"]
    assert len(svgs) == len(record["pictures"])
    assert all(each["role"] == "img" and each["aria-labelledby"] and each["aria-describedby"] for each in svgs)
    assert record["format"] == FORMAT
    return page, record


def series(num_features=1):
    return torch.randn(1, 16, num_features, generator=torch.Generator().manual_seed(0)).cumsum(1)


def rows(num_features=3):
    return torch.randn(40, num_features, generator=torch.Generator().manual_seed(0))


def mixed():
    x = rows(2)
    x[:, 1] = (x[:, 1] > 0).float()
    return MixedMixture(num_components=2, num_features=2, columns="normal,binary"), x


FAMILIES = {
    "gaussian-mixture": lambda: (GaussianMixture(2, 3), rows()),
    "mixed-mixture": mixed,
    "hmm": lambda: (GaussianHMM(num_regimes=2, num_features=1), series()),
    "kalman": lambda: (LinearGaussianSSM.local_level(), series()),
    "switching-ar": lambda: (MarkovSwitchingAR(), series()),
    "switching-lds": lambda: (SwitchingLDS(num_features=2, num_states=1), series(2)[:, :8]),
    "vae": lambda: (VAE(num_features=25, num_latents=2), rows(25).sigmoid()),
    "ppca": lambda: (PPCA(num_features=3, num_latents=1), rows()),
}


@pytest.fixture(scope="module", autouse=True)
def _few_draws():
    """Checks from a tenth of their draws: pages are looked at here, and not what the checks find."""
    with pytest.MonkeyPatch.context() as patch:
        for name, draws in (("inputs.DRAWS", 1000), ("inputs.WEIGHTED_DRAWS", 100), ("predictive.PRIOR_DRAWS", 100)):
            patch.setattr(f"pplgen.checks.{name}", draws)
        yield


@pytest.fixture(scope="module")
def short():
    """A short fit of Old Faithful."""
    return pplgen.fit(GaussianMixture(2, 2), "faithful", **QUICK)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A run of a file whose name and columns are markup and mathematics that does not close."""
    folder = tmp_path_factory.mktemp("hostile")
    data = folder / "a&b<b>.csv"
    pd.DataFrame(rows(2).numpy(), columns=[HOSTILE, "$\\frac{"]).to_csv(data, index=False)
    arguments = ["pplgen", "fit", "gaussian-mixture", str(data), "--steps", "5", "--compile", "off"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", [*arguments, "--draws", "50", "--out", str(folder / "run")])
        with pytest.raises(SystemExit, match="0"):
            main()
        patch.setattr("sys.argv", ["pplgen", "report", str(folder / "run")])
        said = io.StringIO()
        with contextlib.redirect_stdout(said), pytest.raises(SystemExit, match="0"):
            main()
    (folder / "said.txt").write_text(said.getvalue())
    return folder / "run"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_a_report(family, tmp_path, capsys):
    torch.manual_seed(0)
    story, x = FAMILIES[family]()
    fit = pplgen.fit(story, x, **QUICK)
    path = fit.report(tmp_path / "new" / "folder", tree=fit.to_datatree(30))
    assert capsys.readouterr().out == ""
    page, record = read(path.parent)
    drawn = {each["name"] for each in record["pictures"]}
    assert {"predictive", "run"} <= drawn
    own = {"gaussian-mixture": {"components"}, "vae": {"codes", "reconstructions"}, "mixed-mixture": set()}
    assert own.get(family, {"smoothed", "residuals"} if story.takes_series else set()) <= drawn
    assert type(story).__name__ in page.text
    assert record["fit"]["config"] == story.config
    assert record["fit"]["data"]["fingerprint"] == fit.table.fingerprint
    assert any(block["kind"] == "code" and "~" in block["text"] for block in record["story"])
    assert sorted(each["name"] for each in record["pictures"]) != sorted(record["missing"])


def test_a_bare_pair_has_a_report(tmp_path):
    def model(y, sigma):
        """Estimate schools' effects."""
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        with pyro.plate("data", len(y)):
            theta = pyro.sample("theta", dist.Normal(mu, 3.0))
            pyro.sample("y", dist.Normal(theta, sigma), obs=y)

    data = torch.tensor([28.0, 8.0, -3.0, 7.0]), torch.tensor([15.0, 10.0, 16.0, 11.0])
    fit = pplgen.fit(model, data, **QUICK, learning_rate=0.01)
    page, record = read(fit.report(tmp_path, tree=fit.to_datatree(30)).parent)
    assert record["story"] == [{"kind": "text", "text": "Estimate schools' effects."}]
    assert "dist.Normal(theta, sigma)" in record["sources"]["model"]
    assert "AutoNormal" in record["sources"]["guide"]
    assert "pplgen.fit(model, data, guide, seed=0, steps=5, learning_rate=0.01, compile='off')" in page.text
    assert any("its own latent variables" in sentence for sentence in record["missing"])


def test_the_record_agrees_with_the_checks_and_the_page_shows_them(short, tmp_path):
    checks = (
        Check("first", 0.25, 0.5, "Somebody 2001", Verdict.PASS),
        Check("second", float("inf"), 0.7, "Another 2002", Verdict.FAIL, "give <more> steps"),
        Check("third", 3, 3, "ours", Verdict.WARN, "look again"),
        Check("fourth", float("nan"), float("nan"), "ours", Verdict.NOT_APPLICABLE, "it takes series"),
    )
    tree = short.to_datatree(50, groups=["posterior"])
    write_report(short, tree, checks, tmp_path)
    page, record = read(tmp_path)
    assert record["verdict"] == "fail"
    assert record["counts"] == {"pass": 1, "fail": 1, "warn": 1, "not applicable": 1}
    assert [each["name"] for each in record["checks"]] == ["second", "third", "first", "fourth"]
    given = {check.name: check for check in checks}
    for each in record["checks"]:
        check = given[each["name"]]
        assert each["value"] == (check.value if np.isfinite(check.value) else None)
        assert each["threshold"] == (check.threshold if np.isfinite(check.threshold) else None)
        assert (each["source"], each["verdict"], each["remedy"]) == (check.source, check.verdict, check.remedy)
        assert check.name in page.text
        assert check.source in page.text
    assert "Give <more> steps." in page.text
    # the verdict comes before everything else
    assert page.text.index("Not reliable") < page.text.index("Model and data")
    mean = tree["posterior"]["mu"].values[..., 0, 1].mean()
    (parameter,) = (row for row in record["parameters"] if row["name"] == "mu[0, waiting]")
    assert parameter["mean"] == pytest.approx(mean, rel=1e-6)  # of single precision
    assert f"{mean:.4g}" in page.text
    assert record["reproduce"]["python"].splitlines()[-1] == (
        "fit = pplgen.fit(story, 'faithful', seed=0, steps=5, compile='off')"
    )


def mean_field(num_rows):
    """A regression on correlated columns, with a mean-field guide."""
    torch.manual_seed(1)
    x = 0.9 * torch.randn(num_rows, 1) + 0.45 * torch.randn(num_rows, 6)

    def model(x, y):
        b = pyro.sample("b", dist.Normal(torch.zeros(6), 1.0).to_event(1))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(x @ b, 1.0), obs=y)

    return pplgen.fit(
        model, (x, x.sum(1) + torch.randn(num_rows)), steps=800, optimiser="adam", compile="graph", progress=False
    )


def test_the_figure_of_pareto_k_shows_the_values_of_its_check(tmp_path, monkeypatch):
    """Pareto k depends on the draws, so the figure computes none itself."""
    fit = mean_field(60)
    shown = {}
    monkeypatch.setattr(posterior_figures, "plot_pareto_k", lambda _, *what, **how: shown.update(how, what=what))
    _, record = read(fit.report(tmp_path, tree=fit.to_datatree(30)).parent)
    (check,) = (each for each in record["checks"] if "LOO Pareto k" in each["name"])
    (caption,) = (each["caption"] for each in record["pictures"] if each["name"] == "pareto-k")
    (k, rows), limit = shown["what"], shown["good"]
    summary = f"{(k > limit).sum()} of 60 rows, worst {k.max():.2f}"
    assert check["value"] == pytest.approx((k > limit).mean())
    assert check["value"] > 0
    assert check["verdict"] in ("warn", "fail")
    assert f"{summary} (rows {rows[k.argmax()]}, " in check["remedy"]
    assert caption.endswith(f": {summary}.")
    assert f"Above {limit:.2g} a row's" in caption


def test_without_a_check_of_its_rows_there_is_no_figure_of_pareto_k(short, tmp_path):
    write_report(short, short.to_datatree(30, groups=["posterior"]), (), tmp_path)
    _, record = read(tmp_path)
    assert any("did not importance-weight single rows" in sentence for sentence in record["missing"])


def test_the_worst_verdict_counts():
    found = [Check("", 0.0, 0.0, "", verdict) for verdict in Verdict]
    for verdict in (Verdict.FAIL, Verdict.WARN, Verdict.PASS, Verdict.NOT_APPLICABLE):
        assert overall(tuple(found)) is verdict
        found = [check for check in found if check.verdict is not verdict]
    assert overall(()) is Verdict.NOT_APPLICABLE


def test_names_are_text_whatever_they_say(hostile):
    page, record = read(hostile)
    assert HOSTILE in page.text
    assert "$\\frac{" in page.text
    assert record["fit"]["data"]["name"] == "a&b<b>"
    assert "a&b<b>" in page.text
    assert record["parameters"][2]["name"] == f"mu[0, {HOSTILE}]"


def test_a_run_keeps_what_its_report_needs(hostile):
    fit, tree = load_with_draws(hostile)
    assert fit.has_rows
    assert tree["posterior"].sizes["draw"] == 50
    _, record = read(hostile)
    assert record["reproduce"]["command"].startswith("pplgen fit gaussian-mixture ")
    assert record["fit"]["options"] == {"steps": 5, "compile": "off"}
    assert record["fit"]["created"] == json.loads((hostile / run_folder.HEADER).read_text())["created"]
    assert len(record["checks"]) == len(fit.diagnose())
    assert not any("not available" in sentence for sentence in record["missing"])


def test_the_command_says_what_has_failed(hostile):
    _, record = read(hostile)
    _, overall_line, *failed = (hostile.parent / "said.txt").read_text().splitlines()
    counts = ", ".join(f"{record['counts'][verdict]} {verdict}" for verdict in Verdict if verdict in record["counts"])
    assert overall_line == f"Overall fail: {counts}"
    assert failed
    assert failed == [f"failed: {each['name']}" for each in record["checks"] if each["verdict"] == "fail"]


def test_without_its_data_a_report_says_what_it_cannot_show(hostile, tmp_path):
    fit = pplgen.load(hostile)
    _, record = read(fit.report(tmp_path).parent)
    applied = [check["name"] for check in record["checks"] if check["verdict"] != "not applicable"]
    own = ["scale of the latents' log densities", "non-finite ELBO or gradient (count)"]
    assert applied == own, "how it was trained is the run's own record"
    assert record["verdict"] == "pass"
    assert record["missing"][0].startswith("Checks of rows: The training data are not available")
    assert any("Posterior predictive check: " in sentence for sentence in record["missing"])
    assert {each["name"] for each in record["pictures"]} == {"pairs", "run"}


def test_rows_among_the_draws_must_be_those_of_the_run(hostile, tmp_path):
    fit, tree = load_with_draws(hostile)
    fit.save(tmp_path)
    tree["observed_data"]["x"][0, 0] += 1.0
    tree.to_netcdf(tmp_path / run_folder.DRAWS, engine="h5netcdf")
    altered, _ = load_with_draws(tmp_path)
    assert not altered.has_rows


def test_a_report_takes_the_place_of_an_older_one_and_leaves_with_its_run(hostile, tmp_path):
    fit = pplgen.load(hostile)
    fit.save(tmp_path)
    (tmp_path / PAGE).write_text("older")
    fit.report(tmp_path)
    assert "older" not in (tmp_path / PAGE).read_text()[:100]
    assert {path.name for path in tmp_path.iterdir()} == {PAGE, RECORD, run_folder.HEADER, run_folder.TENSORS}
    fit.save(tmp_path, force=True)
    assert {path.name for path in tmp_path.iterdir()} == {run_folder.HEADER, run_folder.TENSORS}


def test_a_report_that_was_there_before_its_run_stays(hostile, tmp_path):
    fit = pplgen.load(hostile)
    fit.report(tmp_path)
    (tmp_path / "fit.png").write_text("my own figure")
    fit.save(tmp_path)
    expected = {PAGE, RECORD, "fit.png", run_folder.HEADER, run_folder.TENSORS}
    assert {path.name for path in tmp_path.iterdir()} == expected
    # cut short before its header, a run leaves draws that are not those of the next
    (tmp_path / run_folder.HEADER).unlink()
    (tmp_path / run_folder.DRAWS).write_text("older")
    fit.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == expected - {"fit.png"}


def test_a_report_is_written_where_it_can_be(short, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(pplgen.InputError, match="cannot be written"):
        write_report(short, short.to_datatree(10, groups=["posterior"]), (), tmp_path / "file" / "below")


def test_docstrings_become_paragraphs_headings_and_code():
    found = blocks_of("Title.\n\nRows are::\n\n    x ~ N\n\n    y = x\n\nReferences\n----------\nA (1).\nB (2).")
    assert found == [
        Block("text", "Title."),
        Block("text", "Rows are:"),
        Block("code", "x ~ N\n\ny = x"),
        Block("heading", "References"),
        Block("text", "A (1).\nB (2)."),
    ]

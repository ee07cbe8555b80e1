"""Tables made of tables: scale, black and white, removed entries."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

import pplgen
from pplgen.data.columns import image_shape
from pplgen.data.table import Table, load_data
from pplgen.data.training_checks import check_training_table
from pplgen.data.transforms import binarise, keep_every, mask_entries, mask_top, redraw_pixels, rescale
from pplgen.errors import InputError

NAN = float("nan")
GREY = torch.rand(4000, 6, generator=torch.Generator().manual_seed(1)).masked_fill_(
    torch.rand(4000, 6, generator=torch.Generator().manual_seed(2)) < 0.1, NAN
)
PIXELS = tuple(f"pixel_{i}_{j}" for i in range(2) for j in range(3))


def test_rescaling_is_affine_and_keeps_everything_else():
    table = Table(torch.tensor([[0.0, 255.0], [51.0, NAN]]), ("a", "b"), "t", target=torch.tensor([1, 0]))
    scaled = rescale(table, 0, 255)
    assert torch.equal(scaled.values.nan_to_num(9), torch.tensor([[0.0, 1.0], [0.2, 9.0]]))
    assert (scaled.columns, scaled.name, scaled.target) == (table.columns, table.name, table.target)
    assert rescale([[2.0, 4.0], [3.0, 2.0]]).values.tolist() == [[0.0, 1.0], [0.5, 0.0]]
    assert rescale([[2.0], [4.0]], low=0).values.tolist() == [[0.5], [1.0]]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"low": 1, "high": 1}, "expected high > low"),
        ({"high": NAN}, "high=nan: expected a finite number"),
        ({"low": "a"}, "low='a': expected a finite number"),
    ],
)
def test_scales_that_are_none(options, sentence):
    with pytest.raises(InputError, match=sentence):
        rescale([[1.0], [2.0]], **options)
    with pytest.raises(InputError, match="expected high > low"):
        rescale([[2.0], [2.0]])


def test_digits_on_the_unit_scale():
    pytest.importorskip("sklearn")
    unit, digits = load_data("digits-unit"), load_data("digits")
    assert torch.equal(unit.values, rescale("digits", 0, 16).values)
    assert torch.equal(unit.values * 16, digits.values)
    assert torch.equal(unit.target, digits.target)


@pytest.mark.parametrize("redraw", [lambda x: binarise(x, seed=3).values, redraw_pixels])
def test_pixels_are_drawn_with_their_own_value_as_probability(redraw):
    drawn = redraw(GREY)
    gap = GREY.isnan()
    assert torch.equal(drawn.isnan(), gap)
    assert drawn.dtype == GREY.dtype
    assert set(drawn[~gap].unique().tolist()) == {0.0, 1.0}
    for low in torch.arange(0.0, 1.0, 0.1):
        chosen = (low <= GREY) & (low + 0.1 > GREY)
        wanted, found = GREY[chosen], drawn[chosen]
        # four standard errors of the mean of independent Bernoulli draws
        assert abs(found.mean() - wanted.mean()) < 4 * (wanted * (1 - wanted)).sum().sqrt() / len(wanted)
    sure = torch.tensor([[0.0, 1.0]]).expand(1000, 2)
    assert torch.equal(redraw(sure), sure)


def test_binarising_once_repeats_itself_and_leaves_torchs_generator_alone():
    state = torch.get_rng_state()
    first, again, other = (binarise(GREY, seed=seed).values.nan_to_num(9) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_redrawing_is_new_each_time_and_has_a_graph():
    """Under ``make_fx``, which is how a fit traces a step, the draws stay draws."""
    from torch.fx.experimental.proxy_tensor import make_fx

    grey = torch.full((50, 20), 0.5)
    assert not torch.equal(redraw_pixels(grey), redraw_pixels(grey))
    graph = make_fx(redraw_pixels)(grey)
    assert not torch.equal(graph(grey), graph(grey))
    mapped = torch.func.vmap(redraw_pixels, randomness="different")(grey.expand(2, 50, 20))
    assert not torch.equal(mapped[0], mapped[1])


def test_a_threshold_needs_no_draws():
    assert binarise([[0.0, 0.5], [0.51, NAN]], threshold=0.5).values.nan_to_num(9).tolist() == [[0, 0], [1, 9]]
    with pytest.raises(InputError, match=r"column 'x1', row 2: 3 is not a grey value; .* as pplgen\.rescale returns"):
        binarise([[0.0, 0.5], [0.5, 3.0]])


def test_entries_go_at_random():
    x = torch.rand(2000, 10)
    table = mask_entries(Table(x, tuple("abcdefghij"), "t", target=torch.zeros(2000).long()), 0.3, seed=5)
    gap = table.values.isnan()
    # four standard errors of a share among 20,000 entries
    assert abs(gap.float().mean() - 0.3) < 4 * (0.3 * 0.7 / 20_000) ** 0.5
    assert torch.equal(table.values[~gap], x[~gap])
    assert table.target is not None
    assert torch.equal(gap, mask_entries(x, 0.3, seed=5).values.isnan())
    assert not mask_entries(x, 0.0).values.isnan().any()
    with pytest.raises(InputError, match=r"share=1: expected a number in \[0, 1\)"):
        mask_entries(x, 1)


def test_pictures_lose_their_top_or_all_but_a_grid():
    pictures = torch.arange(2 * 28 * 28.0).reshape(2, 784)
    top = mask_top(pictures).values.reshape(2, 28, 28)
    assert top[:, :14].isnan().all()
    assert torch.equal(top[:, 14:], pictures.reshape(2, 28, 28)[:, 14:])
    coarse = keep_every(pictures, 2).values.reshape(2, 28, 28)
    assert torch.equal(coarse[:, ::2, ::2], pictures.reshape(2, 28, 28)[:, ::2, ::2])
    assert (~coarse.isnan()).sum() == 2 * 14 * 14
    assert torch.equal(keep_every(pictures, 1).values, pictures)


def test_shapes_of_pictures_are_told_by_columns_or_given():
    assert image_shape(PIXELS) == (2, 3)
    assert image_shape(PIXELS[:-1]) is None
    assert image_shape((*PIXELS[1::-1], *PIXELS[2:])) is None
    assert image_shape(("a", "b")) is None
    assert image_shape(()) is None
    x = torch.zeros(1, 6)
    assert mask_top(Table(x, PIXELS, "t")).values.isnan().tolist() == [[True] * 3 + [False] * 3]
    assert mask_top(x, shape=(3, 2), share=0.34).values.isnan().tolist() == [[True] * 2 + [False] * 4]
    with pytest.raises(InputError, match="its 6 columns do not determine height and width"):
        mask_top(x)
    with pytest.raises(InputError, match=r"shape=\(2, 2\): expected height and width of 6 pixels"):
        keep_every(x, shape=(2, 2))
    with pytest.raises(InputError, match="step=0: expected a whole number"):
        keep_every(Table(x, PIXELS, "t"), 0)
    with pytest.raises(InputError, match=r"share=2: expected a number in \[0, 1\]"):
        mask_top(Table(x, PIXELS, "t"), 2)


def test_margins_of_pictures_are_no_cause_for_a_warning():
    """Any warning is an error here."""
    check_training_table(Table(torch.zeros(3, 6), PIXELS, "t"))


def test_the_remedy_for_grey_values_is_named():
    pytest.importorskip("sklearn")
    with pytest.raises(
        InputError, match=r"row 1, column 3: 5 is not a pixel value; .* pplgen\.rescale or the data set digits-unit"
    ):
        pplgen.fit(pplgen.models.VAE(64, 2), "digits", steps=2)


def test_larochelles_binarisation(reference_data, monkeypatch):
    """The published log-likelihood of independent pixels, to its three digits."""
    folder = reference_data / "static_binarized_mnist"
    if not folder.is_dir():
        pytest.skip("the fixed binarisation of MNIST is not among the reference data")
    monkeypatch.setenv("BINARISED_MNIST", str(folder))
    path = Path(__file__).parents[2] / "benchmarks" / "binarised_mnist.py"
    spec = importlib.util.spec_from_file_location("binarised_mnist", path)
    reader = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "binarised_mnist", reader)
    spec.loader.exec_module(reader)
    assert reader.why_absent() is None
    train, test = (reader.load_binarised(split) for split in ("train", "test"))
    assert reader.independent_pixels(train.values, test.values) == pytest.approx(-205.793, abs=1e-2)
    assert image_shape(train.columns) == (28, 28)
    monkeypatch.setenv("BINARISED_MNIST", str(folder / "nowhere"))
    assert "set BINARISED_MNIST to its folder" in reader.why_absent()

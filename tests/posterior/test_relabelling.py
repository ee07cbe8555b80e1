"""Components of draws matched to a reference."""

import pytest
import torch
from pplgen.models import GaussianHMM, GaussianMixture

from pplgen.posterior.relabelling import component_axes, match_components
from pplgen.story.pair import Pair


@pytest.mark.parametrize("K", [3, 8])
def test_switched_labels_are_switched_back(K):
    generator = torch.Generator().manual_seed(0)
    draws = {
        "mu": 10 * torch.arange(float(K))[:, None] + torch.randn(50, K, 2, generator=generator),
        "P": torch.rand(50, K, K, generator=generator),
        "shared": torch.randn(50, generator=generator),
    }
    orders = torch.stack([torch.randperm(K, generator=generator) for _ in range(50)])
    rows = torch.arange(50)[:, None]
    switched = {
        "mu": draws["mu"][rows, orders],
        "P": draws["P"][rows[..., None], orders[:, :, None], orders[:, None, :]],
        "shared": draws["shared"],
    }
    found = match_components(switched, draws, {"mu": (-2,), "P": (-2, -1)})
    for name, value in draws.items():
        torch.testing.assert_close(found[name], value)


def test_a_component_without_rows_gives_way_to_one_with_many():
    # one component known to .1, the other to 10: it may lie anywhere, and still is not the first
    noise = torch.randn(200, 2, 1, generator=torch.Generator().manual_seed(0))
    reference = {"mu": torch.tensor([[0.0], [10.0]]) + torch.tensor([[0.1], [10.0]]) * noise}
    found = match_components({"mu": torch.tensor([[[-10.0], [0.1]]])}, reference, {"mu": (-2,)})
    torch.testing.assert_close(found["mu"], torch.tensor([[[0.1], [-10.0]]]))


def test_stories_name_their_components():
    mixture = GaussianMixture(2, 3)
    assert component_axes(Pair.of_story(mixture, mixture.simulate(9), initialise=False)) == {
        "weights": (-1,),
        "mu": (-2,),
        "Sigma": (-3,),
        "scale_tril": (-3,),
    }
    chain = GaussianHMM(2, 1)
    axes = component_axes(Pair.of_story(chain, chain.simulate(1), initialise=False))
    assert axes["P"] == (-2, -1)
    assert axes["pi"] == (-1,)

"""Drawn paths have the moments that the smoother finds, and drawn entries those of a conditioned normal."""

import torch

from pplgen.exact.kalman import kalman_filter, rts_smoother
from pplgen.exact.simulation import draw_missing, draw_states, square_root

DRAWS = 20_000


def test_paths_have_the_smoothed_moments(varying_model):
    y, parameters = varying_model
    filtered = kalman_filter(y, parameters)
    smoothed = rts_smoother(filtered, parameters)
    torch.manual_seed(0)
    many = filtered._replace(
        mean=filtered.mean.expand(DRAWS, -1, -1, -1), covariance=filtered.covariance.expand(DRAWS, -1, -1, -1, -1)
    )
    paths = draw_states(many, parameters)
    deviation = smoothed.covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    # 42 means and 36 cross-covariances: five standard errors
    assert ((paths.mean(0) - smoothed.mean).abs() < 5 * deviation / DRAWS**0.5).all()
    around = paths - paths.mean(0)
    cross = torch.einsum("sbti,sbtj->btij", around[:, :, 1:], around[:, :, :-1]) / DRAWS
    bound = deviation[:, 1:, :, None] * deviation[:, :-1, None, :]
    assert ((cross - smoothed.cross_covariance).abs() < 5 * 2**0.5 * bound / DRAWS**0.5).all()


def test_missing_entries_are_drawn_given_the_seen():
    R = torch.tensor([[1.0, 0.8, 0.2], [0.8, 1.0, 0.3], [0.2, 0.3, 1.0]]).double()
    y = torch.tensor([1.0, torch.nan, 0.5]).double()
    x, C, d = torch.ones(1).double(), torch.tensor([[1.0], [2.0], [0.0]]).double(), torch.zeros(3).double()
    torch.manual_seed(0)
    drawn = draw_missing(y.expand(DRAWS, 3), x, C, d, R)
    seen = [0, 2]
    gain = R[1, seen] @ torch.linalg.inv(R[seen][:, seen])
    mean, variance = 2 + gain @ (y[seen] - C[seen, 0]), 1 - gain @ R[seen, 1]
    torch.testing.assert_close(drawn[:, seen], y[seen].expand(DRAWS, 2))
    assert (drawn[:, 1].mean() - mean).abs() < 4 * (variance / DRAWS).sqrt()
    assert (drawn[:, 1].var() / variance - 1).abs() < 4 * (2 / DRAWS) ** 0.5


def test_roots_of_singular_matrices():
    vector = torch.tensor([[1.0], [2.0]]).double()
    both = torch.stack([vector @ vector.T, torch.eye(2).double()])
    root = square_root(both)
    torch.testing.assert_close(root @ root.mT, both)

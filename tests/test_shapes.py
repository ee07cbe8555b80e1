"""The annotated shapes of exact references and distributions are checked whenever a test calls them."""

import importlib
import inspect
import pkgutil
from typing import get_args, get_type_hints

import pytest
import torch
from jaxtyping import AbstractArray, TypeCheckError, jaxtyped

import pplgen.distributions
import pplgen.exact
from pplgen.distributions import InverseWishartCholesky, LinearGaussianSeries, NormalMixture
from pplgen.distributions.hidden_markov import sample_chain
from pplgen.exact.em_missing import e_step_missing, em_missing
from pplgen.exact.gaussian_sums import gaussian_sum_filter
from pplgen.exact.hmm import forward_backward
from pplgen.exact.kalman import kalman_filter, predict, rts_smoother, update
from pplgen.exact.ppca import em_factor_analysis, factor_posterior
from pplgen.exact.switching import kim_filter, kim_smoother
from pplgen.exact.switching_simulation import draw_switching_paths
from pplgen.story.dynamics import LinearGaussian, MarkovChain, SwitchingLinearGaussian

D, E, T, K = 3, 2, 6, 4
eye = torch.eye


def linear_gaussian(D=D):
    return LinearGaussian(
        torch.zeros(D), eye(D), 0.5 * eye(D), torch.zeros(D), eye(D), eye(D)[:E], torch.zeros(E), eye(E)
    )


# the first argument that has an axis gives its size, and the first that has another size is named
WRONG = {
    "a state of the wrong width": (
        "covariance",
        lambda: predict(torch.zeros(D + 1), eye(D), eye(D), torch.zeros(D), eye(D)),
    ),
    "a covariance that is not square": (
        "covariance",
        lambda: predict(torch.zeros(D), torch.ones(D, E), eye(D), torch.zeros(D), eye(D)),
    ),
    "an observation of the wrong width": (
        "C",
        lambda: update(torch.zeros(D), eye(D), torch.zeros(E, 1), eye(D)[:E], torch.zeros(E), eye(E)),
    ),
    "integers for numbers": (
        "mean",
        lambda: predict(torch.zeros(D, dtype=torch.long), eye(D), eye(D), torch.zeros(D), eye(D)),
    ),
    "a parameter of a distribution": ("sigma", lambda: NormalMixture(torch.zeros(K), torch.zeros(K, D), torch.ones(D))),
    "a value of a distribution": (
        "value",
        lambda: LinearGaussianSeries(linear_gaussian(), T).log_prob(torch.zeros(T)),
    ),
    "no vector of scales": ("scale", lambda: InverseWishartCholesky(5, torch.ones(()))),
}


MODULES = [
    importlib.import_module(f"{room.__name__}.{each.name}")
    for room in (pplgen.exact, pplgen.distributions)
    for each in pkgutil.iter_modules(room.__path__)
]


def functions(module):
    """Every function and class with annotations that a module defines, methods and properties among them."""
    for owner in [module, *(each for _, each in inspect.getmembers(module, inspect.isclass))]:
        if getattr(owner, "__module__", module.__name__) != module.__name__:
            continue
        if inspect.isclass(owner):
            yield owner
        for member in vars(owner).values():
            member = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
            if inspect.isfunction(member) and member.__module__ == module.__name__:
                yield member


def shapes_of(annotation):
    """Annotations of tensors with axes, inside unions and containers too."""
    if inspect.isclass(annotation) and issubclass(annotation, AbstractArray):
        yield annotation
    for inner in get_args(annotation):
        yield from shapes_of(inner)


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_shape_is_refused(case):
    argument, call = WRONG[case]
    with pytest.raises(TypeCheckError, match=f"parameter '{argument}'"):
        call()


def test_a_wrong_result_is_refused():
    """No steps were asked for, of which one is always drawn."""
    with pytest.raises(TypeCheckError, match="return value"):
        sample_chain(torch.zeros(K), torch.zeros(K, K), 0)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_annotation_is_one_that_is_checked(module):
    """One that cannot be evaluated is read as ``Any``, and would be checked no more."""
    for function in functions(module):
        for name, text in vars(function).get("__annotations__", {}).items():
            if "[Tensor," in str(text):
                assert [*shapes_of(get_type_hints(function)[name])], f"{function.__qualname__}: {name}"


def results():
    torch.manual_seed(0)
    y, x = torch.randn(2, T, E), torch.randn(20, D)
    x[0, 0] = torch.nan
    parameters = linear_gaussian()
    filtered = kalman_filter(y, parameters)
    yield from (filtered, rts_smoother(filtered, parameters))
    yield forward_backward(torch.randn(2, T, K), MarkovChain(torch.zeros(K), torch.zeros(K, K)))
    switching = SwitchingLinearGaussian(torch.ones(K) / K, torch.ones(K, K) / K, *parameters)
    collapsed = kim_filter(y, switching)
    yield from (collapsed, kim_smoother(collapsed, switching))
    sums = gaussian_sum_filter(y, switching)
    yield from (sums, *sums.steps, draw_switching_paths(y, sums, switching, 5))
    mixture = em_missing(x, 2).parameters
    yield from (mixture, e_step_missing(x, mixture))
    factors = em_factor_analysis(x, 1, max_iterations=5).parameters
    yield from (factors, factor_posterior(x, factors))


@pytest.mark.parametrize("result", [*results()], ids=lambda result: type(result).__name__)
def test_results_have_the_shapes_of_their_fields(result):
    """Fields of named tuples are no arguments, and so are not checked at each call."""
    hints = {name: hint for name, hint in get_type_hints(type(result)).items() if [*shapes_of(hint)]}
    assert hints
    with jaxtyped("context"):
        for name, hint in hints.items():
            value = getattr(result, name)
            assert isinstance(value, hint), f"{name} has shape {tuple(value.shape)}: {hint}"


def test_nothing_is_checked_outside_the_tests(shapes_unchecked):
    assert predict(torch.zeros(D), eye(D), eye(D), torch.zeros(1), eye(D))[0].shape == (D,)

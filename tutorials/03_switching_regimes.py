# %% [markdown]
# # Switching regimes
#
# In a state space model, today's belief is yesterday's, predicted one step ahead and updated by today's observation.
# This tutorial does those two steps by hand on the Nile, infers the parameters, and then lets the *dynamics* switch:
# quarters of recession and growth, and a track that turns in two ways, with missing steps and a forecast.

# %%
import math
import os

import matplotlib.pyplot as plt
import numpy as np
import statsmodels.api as sm
import torch
from pplgen.models import LinearGaussianSSM, MarkovSwitchingAR, SwitchingLDS
from torch.distributions import Normal

import pplgen
from pplgen.exact.kalman import kalman_filter
from pplgen.exact.kalman_scan import diffuse_log_likelihood
from pplgen.plots.palette import COLOURS
from pplgen.plots.series import plot_forecast, plot_regimes, plot_series
from pplgen.story.dynamics import LinearGaussian

SMOKE = os.environ.get("PPLGEN_SMOKE") == "1"
options = {"steps": 200, "compile": "graph"} if SMOKE else {"restarts": 4}

# %% [markdown]
# ## Predict and update, by hand
#
# The Nile's flow at Aswan, 1871 to 1970. The story: a random walk $x_t$, observed with noise,
#
# $$ x_t = x_{t-1} + \mathcal N(0, Q), \qquad y_t = x_t + \mathcal N(0, R). $$
#
# Everything is Gaussian, so the belief about the level is a mean $m$ and a variance $P$. **Predict**: the level may
# have moved, so $P \leftarrow P + Q$. **Update**: the observation $y$ was predicted at $m$ with variance $P + R$; the
# innovation $y - m$ is multiplied by the Kalman gain $K = P / (P + R)$, and the variance by $1 - K$.

# %%
nile = pplgen.load_data("nile", dtype=torch.float64).values[:, -1]  # needs 'pip install pplgen[data]'
years = 1871 + np.arange(len(nile))
Q, R = 1469.1, 15099.0  # maximum likelihood, Durbin and Koopman (2012)

m, P = 1000.0, 1e6  # a vague prior before 1871
means, variances, predictions, log_likelihood = [], [], [], 0.0
for t, y in enumerate(nile.tolist()):
    if t > 0:
        P = P + Q
    predictions.append((m, P))
    log_likelihood += -0.5 * (math.log(2 * math.pi * (P + R)) + (y - m) ** 2 / (P + R))
    K = P / (P + R)
    m, P = m + K * (y - m), (1 - K) * P
    means.append(m)
    variances.append(P)
by_hand = torch.tensor(means, dtype=torch.float64)

# %% [markdown]
# Ten lines. We compare them with the general filter of `pplgen.exact.kalman` (any dimensions, missing entries,
# time-varying parameters), and with a reference value: with a *diffuse* prior the log-likelihood is -633.46456 at the
# variances of Durbin and Koopman (2012).

# %%
one = torch.ones(1, 1, dtype=torch.float64)
zero = torch.zeros(1, dtype=torch.float64)
level = LinearGaussian(1000 * one[0], 1e6 * one, one, zero, Q * one, one, zero, R * one)
filtered = kalman_filter(nile[:, None], level)
diffuse = diffuse_log_likelihood(nile[:, None], level).item()
print(f"log-likelihood by hand {log_likelihood:.5f}, by the filter {filtered.log_likelihood:.5f}")
print(f"with a diffuse prior {diffuse:.5f}")

# %%
t = 28  # 1899: the year in which the flow fell
(before, spread), y = predictions[t], nile[t].item()
grid = torch.linspace(600, 1300, 400)
figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for mean, variance, colour, name in (
    (before, spread, COLOURS[1], "predicted from the years up to 1898"),
    (y, R, "0.5", f"likelihood of the level given y = {y:.0f}"),
    (means[t], variances[t], COLOURS[0], "updated: narrower than both"),
):
    axes.plot(grid, Normal(mean, variance**0.5).log_prob(grid).exp(), color=colour, label=name)
axes.set(xlabel="level of the Nile (10⁸ m³ a year)", ylabel="density", title="One update, 1899")
axes.set_ylim(top=1.35 * axes.get_ylim()[1])
axes.legend(frameon=False, fontsize="small", loc="upper left")
plt.show()

# %% [markdown]
# ## Inferring the parameters
#
# We took $Q$ and $R$ from a book. `LinearGaussianSSM` has priors on them, integrates the states out by the same filter
# (in parallel over time), and infers the posterior of the standard deviations $q$ and $r$. To make it harder, we hide
# the years 1911 to 1930, and forecast ten years ahead. A missing observation is a predict step without an update.

# %%
y = nile.float().clone()[None, :, None]
y[0, 40:60] = torch.nan
river = pplgen.fit(LinearGaussianSSM.local_level(known={"m0": 1000.0, "s0": 1000.0}), y, **options)
river.summary()
smoothed = river.smooth()
years_ahead = river.forecast(10, keep_draws=True)
q, r = (river.to_datatree(draws=1000, groups=["posterior"])["posterior"][name].values.ravel() for name in "qr")

figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4), width_ratios=(2, 1), sharey=True, layout="constrained")
plot_series(left, y, smoothed)
left.set_ylim(380, 1500)
left.plot(np.arange(40, 60), nile[40:60], "x", color=COLOURS[1], ms=5, label="hidden")
left.legend(fontsize="small", ncols=3, loc="upper right", framealpha=0.85, edgecolor="none")
plot_forecast(right, y, years_ahead, past=25)
for axes, title in ((left, "Smoothed: given all years"), (right, "Ten years ahead")):
    axes.set(xlabel="year", ylabel="", title=title)
    axes.set_xticks(
        ticks := [step for step in axes.get_xticks() if 0 <= step < 111], [f"{1871 + step:.0f}" for step in ticks]
    )
left.set_ylabel("flow (10⁸ m³ a year)")
plt.show()

level_sd = smoothed["state_mean"].values[0, :, 0], smoothed["state_sd"].values[0, :, 0]
draws = river.impute(draws=200)[:, 0, 40:60, 0]
low, high = draws.quantile(torch.tensor([0.05, 0.95]), 0)
hidden_inside = int(((nile[40:60] > low) & (nile[40:60] < high)).sum())
print(f"{hidden_inside} of the 20 hidden flows lie in their 90 % intervals")

# %% [markdown]
# Through the gap the interval widens, as there are no observations, and narrows again towards 1931, since a smoother
# also uses later observations. The forecast has none, and only widens.
#
# ## Recessions
#
# Hamilton (1989) modelled an economy with two hidden regimes, growth and recession. The story:
# growth of output scatters around a mean, and the mean is that of the current regime; the regime is a Markov chain.
#
# $$ s_t \mid s_{t-1} \sim \mathrm{Categorical}(P_{s_{t-1}}), \qquad y_t \mid s_t \sim \mathcal N(\mu_{s_t}, \sigma). $$
#
# (Hamilton's growth is an autoregression around that mean, with four lags: `order=4`. We leave the lags out.) All paths
# of regimes are summed out exactly, by the forward algorithm, the discrete analogue of the filter above.
#
# The data are quarterly growth of US real GDP, 1959 to 2009, from statsmodels. The National Bureau of Economic Research
# (NBER) dates recessions, months afterwards. The fit does not use these dates.

# %%
table = sm.datasets.macrodata.load_pandas().data
growth = 100 * np.diff(np.log(table["realgdp"].to_numpy()))
quarters = table["year"].to_numpy()[1:] + (table["quarter"].to_numpy()[1:] - 1) / 4
# NBER's quarterly peaks and troughs; a recession is what follows a peak, up to the trough
PEAKS_TROUGHS = ((1960.25, 1961.0), (1969.75, 1970.75), (1973.75, 1975.0), (1980.0, 1980.5))
PEAKS_TROUGHS += ((1981.5, 1982.75), (1990.5, 1991.0), (2001.0, 2001.75), (2007.75, 2009.25))
recession = np.any([(quarters > peak) & (quarters <= trough) for peak, trough in PEAKS_TROUGHS], axis=0)
y = torch.tensor(growth, dtype=torch.float32)[None, :, None]


def probability_of_recession(fitted):
    """Smoothed probability of the regime with the lower mean, shape ``(num_steps,)``, and that regime's number."""
    lower = int(posterior_mean(fitted)["mu"].argmin())
    return fitted.smooth(draws=100)["regime_probability"].values[0, :, lower], lower


def posterior_mean(fitted):
    """Return the posterior means of the parameters, by name."""
    posterior = fitted.to_datatree(draws=500, groups=["posterior"])["posterior"].to_dataset()
    return {name: values.mean(("chain", "draw")).values for name, values in posterior.items()}


def agreement(probability):
    """Area under the ROC curve of the probability against NBER's recession dates."""
    return float((probability[recession][:, None] > probability[~recession]).mean())


economy = pplgen.fit(MarkovSwitchingAR(2, order=0), y, **options)
economy.summary()
probability, low_regime = probability_of_recession(economy)
found = posterior_mean(economy)
print(f"area under the ROC curve against NBER's dates: {agreement(probability):.3f}")

# %%
reference = sm.tsa.MarkovRegression(growth, k_regimes=2)
P = found["P"]
theirs = reference.smooth(np.r_[P[0, 0], P[1, 0], found["mu"], found["sigma"] ** 2])
probability_by_statsmodels = theirs.smoothed_marginal_probabilities[:, low_regime]
difference = float(np.abs(probability_by_statsmodels - probability).mean())
print(f"mean distance from statsmodels' smoother at the posterior mean: {difference:.3f}")

figure, (above, below) = plt.subplots(2, 1, figsize=(10, 5), sharex=True, layout="constrained")
for axes in (above, below):
    for peak, trough in PEAKS_TROUGHS:
        axes.axvspan(peak + 0.125, trough + 0.125, color="0.85", lw=0)
above.plot(quarters, growth, color="0.2", lw=0.9, marker=".", ms=3)
above.axhline(0, color="0.5", lw=0.6)
for mean, colour in zip(found["mu"], (COLOURS[1], COLOURS[0]), strict=True):
    above.axhline(mean, color=colour, lw=1, ls="--", label=f"mean of a regime: {mean:.2f}")
above.set(ylabel="growth (% a quarter)", title="US real GDP; NBER's recessions in grey, not used by the fit")
above.legend(frameon=False, fontsize="small", loc="upper right", ncols=2)
below.plot(quarters, probability, color=COLOURS[1], label="averaged over the posterior")
below.plot(
    quarters, probability_by_statsmodels, color="0.2", lw=0.8, ls=":", label="statsmodels, at the posterior mean"
)
below.set(xlabel="year", ylabel="P(regime of low growth)", ylim=(0, 1))
below.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(0.62, 1.0))
plt.show()

# %% [markdown]
# ### Regimes are defined by the likelihood
#
# The dates agree, except for the mild recession of 2001, whose probability is below one half. It is tempting to call
# the regime "recession". Now we add one lag of autoregression, and let the *variance* switch as well: two small and
# sensible changes. The regimes change their meaning.

# %%
volatile = pplgen.fit(MarkovSwitchingAR(2, order=1, switching_variance=True), y, **options)
sigmas = posterior_mean(volatile)["sigma"]
volatile_regime = int(sigmas.argmax())
smoothed_volatile = volatile.smooth(draws=100)
unrest = smoothed_volatile["regime_probability"].values[0, :, volatile_regime]
print(f"standard deviations of the two regimes: {sigmas.round(2)}")

figure, axes = plt.subplots(figsize=(10, 3.2), layout="constrained")
axes.plot(growth, color="0.2", lw=0.9, marker=".", ms=3)
plot_regimes(axes, smoothed_volatile)
axes.set(xlabel="year", ylabel="growth (% a quarter)", title="With a switching variance: before 1984, and after")
axes.set_xticks(ticks := range(3, len(growth), 40), [f"{quarters[step]:.0f}" for step in ticks])
axes.legend(fontsize="small", loc="lower left", ncols=2)
plt.show()

before_1984, after_1984 = (
    float(unrest[quarters < 1984].mean()),
    float(unrest[(quarters >= 1985) & (quarters < 2007)].mean()),
)
print(f"probability of the volatile regime: {before_1984:.2f} before 1984, {after_1984:.2f} from 1985 to 2006")
print(f"area under the curve against NBER's dates: {agreement(unrest):.3f}")

# %% [markdown]
# Now the regimes are the volatile decades and the calm ones, what economists call the Great Moderation. That is not a
# failure of the fit: it is what increases the likelihood most. The story and the data define a regime; its name is our
# interpretation. So validate it against external data, as we did with the dates.
#
# ## A track with missing positions
#
# Last, hidden states *and* switching dynamics. A float drifts in an eddy: it turns slowly one way, or fast the other
# way. We simulate it, so that the truth is known; a sixth of the positions are missing, and twelve in a row.

# %%
rng = np.random.default_rng(4)
STEPS, AHEAD = (160, 15) if SMOKE else (240, 15)


def turning(angle):
    """Rotation matrix by an angle in radians, with slow contraction."""
    return 0.995 * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


A, b = (turning(0.15), turning(-0.5)), (np.array([0.2, 0.0]), np.array([-0.2, 0.3]))
regime, place, regimes, places = 0, np.array([2.0, 0.0]), [], []
for _ in range(STEPS + AHEAD):
    regime = 1 - regime if rng.random() < 0.05 else regime
    place = A[regime] @ place + b[regime] + 0.12 * rng.normal(size=2)
    regimes.append(regime)
    places.append(place)
regimes, places = np.array(regimes), np.array(places)
positions = places + 0.15 * rng.normal(size=places.shape)
seen = positions[:STEPS].copy()
lost = rng.random(STEPS) < 1 / 6
lost[100:112] = True
lost[-1] = False  # missing steps at the end would shorten the series
seen[lost] = np.nan

y = torch.tensor(seen, dtype=torch.float32)[None]
drift = pplgen.fit(SwitchingLDS(2, 2, 2), y, **(options | ({"steps": 60, "restarts": 2} if SMOKE else {"steps": 300})))
print(drift)
track = drift.smooth(draws=200)
guess = track["regime_probability"].values[0].argmax(1)
right = max((guess == regimes[:STEPS]).mean(), (guess != regimes[:STEPS]).mean())  # labels of regimes are arbitrary
steps = np.arange(STEPS)
gap = lost & (steps >= 98) & (steps < 114)  # the twelve in a row, and missing steps at their edges
filled = drift.impute(draws=200)[:, 0].numpy()
low, high = np.quantile(filled, [0.05, 0.95], axis=0)
inside = (positions[:STEPS] > low) & (positions[:STEPS] < high)
straight = np.stack([np.interp(steps, steps[~lost], seen[~lost, j]) for j in (0, 1)], 1)


def error(guesses, chosen):
    """Root mean squared error per coordinate of estimated positions, over the chosen steps."""
    return np.sqrt(((guesses - places[:STEPS])[chosen] ** 2).mean())


print(f"{100 * right:.0f} % of steps are in the right regime: {track.attrs['estimator']}")
for name, chosen in {"missing singly": lost & ~gap, "missing in a row": gap}.items():
    print(
        f"{chosen.sum()} positions {name}: error {error(filled.mean(0), chosen):.2f}, of linear interpolation "
        f"{error(straight, chosen):.2f}; {100 * inside[chosen].mean():.0f} % are inside their 90 % intervals"
    )

# %% [markdown]
# A single missing position is constrained by its neighbours. Through the long gap several paths are possible, since the
# time of the switch is unknown. The guide of our fit is *one* Gaussian path around the most probable regimes: good
# enough to learn the parameters, but without the other paths. So `smooth` and `impute` do not use it. They draw regimes
# and states by forward filtering, backward sampling, with a Gaussian sum filter. The filter keeps a few histories of
# regimes apart and merges the others; importance weights correct each path for that approximation.

# %%
ahead = drift.forecast(AHEAD, draws=300, keep_draws=True)
figure = plt.figure(figsize=(12, 5), layout="constrained")
left, right_side = figure.subfigures(1, 2, width_ratios=(1, 1.7))
axes = left.subplots()
axes.plot(*places[:STEPS].T, color="0.8", lw=0.8, label="true path")
for k in range(2):
    axes.plot(*track["y_mean"].values[0, guess == k].T, ".", ms=4, color=COLOURS[k + 1], label=f"smoothed, regime {k}")
axes.plot(*positions[100:112].T, "x", ms=5, color="0.15", label="missing, twelve in a row")
axes.set(xlabel="east", ylabel="north", title="The track")
axes.set_aspect("equal", adjustable="datalim")
axes.legend(frameon=False, fontsize="small", ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.12))
upper, lower = right_side.subplots(2, 1)
plot_series(upper, y, track)
upper.plot(steps[lost], positions[:STEPS][lost, 0], "x", color=COLOURS[1], ms=4)
upper.set(ylabel="east", title="Smoothed (crosses: missing positions)")
plot_forecast(lower, y, ahead, past=40)
lower.plot(STEPS + np.arange(AHEAD), positions[STEPS:, 0], ".", color="0.15", ms=5, label="later positions")
lower.set(ylabel="east", title="Forecast: the next regimes are unknown too")
lower.legend(fontsize="small", loc="upper left", ncols=3, framealpha=0.85, edgecolor="none")
plt.show()

future_low, future_high = (np.quantile(ahead["y_draw"].values[:, 0], p, axis=0) for p in (0.05, 0.95))
future_coverage = ((positions[STEPS:] > future_low) & (positions[STEPS:] < future_high)).mean()
print(f"{100 * future_coverage:.0f} % of later positions lie in the 90 % band of the forecast")

# %% [markdown]
# ## What we claimed

# %%
assert abs(log_likelihood - filtered.log_likelihood.item()) < 1e-8
assert (by_hand - filtered.mean[:, 0]).abs().max() < 1e-8
assert abs(log_likelihood - -640.38054) < 1e-4
assert abs(diffuse - -633.46456) < 1e-4
assert hidden_inside >= 15  # 18 expected of 20
assert level_sd[1][50] > 1.5 * level_sd[1][20]
assert agreement(probability) > 0.95
assert found["mu"].min() < 0 < found["mu"].max()
assert probability[(quarters >= 2001) & (quarters < 2002)].max() < 0.5
assert difference < 0.05
assert before_1984 > 0.8
assert after_1984 < 0.2
assert agreement(unrest) < agreement(probability)
assert right > 0.9
assert inside[lost & ~gap].mean() > 0.9 - 4 * 0.04  # 90 % of 56 numbers or more: four standard errors of 4 %
assert inside[gap].mean() > 0.75  # a lower limit: intervals that cover several paths are wider
assert error(filled.mean(0), lost & ~gap) < 0.8 * error(straight, lost & ~gap)
assert error(filled.mean(0), gap) < 0.8 * error(straight, gap)

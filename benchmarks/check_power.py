"""Power of the checks: how many of the mutants they detect, and how often they alarm on healthy fits.

Mutants are made by program: each operator of ``mutants`` changes each healthy pair to which it applies. All scorers see
the same fits. ``--healthy`` counts failed checks of healthy fits of all stories; ``--tiny`` is a run of seconds.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from harness import report
from mutants.data_operators import DATA_OPERATORS
from mutants.fit_operators import FIT_OPERATORS, STORY_OPERATORS
from mutants.guide_operators import GUIDE_OPERATORS
from mutants.healthy_pairs import PAIRS
from mutants.healthy_stories import QUICK_STORIES, STORIES
from mutants.model_operators import MODEL_OPERATORS
from mutants.pair_under_test import DoesNotApply, Subject
from mutants.scorers import khat_alone, our_checks, predictive_checks, vsbc

from pplgen.checks.registry import Checks, Verdict
from pplgen.errors import InputError
from pplgen.story.isolation import seeded

FAMILIES = {
    "guide": GUIDE_OPERATORS,
    "model": MODEL_OPERATORS,
    "data": DATA_OPERATORS,
    "optimiser": FIT_OPERATORS,
    "story": STORY_OPERATORS,
}
SCORERS = ("checks: fail", "checks: fail or warn", "k-hat", "VSBC", "predictive p")
TURNS = {"guide": 3, "optimiser": 4}
"""An operator of a family is applied to every second, third ... pair, in turns."""
VSBC_TURNS = 10
"""VSBC fits each simulated data set anew for every tenth pair, where the guide is not in closed form."""
OWN_SEED = 1000
HEALTHY_SEEDS = 2
STORY_SEEDS = 5


class Score(NamedTuple):
    """What each scorer says of one fit; ``None`` where it does not apply."""

    name: str
    family: str
    alarms: tuple[bool | None, ...]
    said: Checks | None


def score(name: str, family: str, subject: Subject, seed: int, with_vsbc: Callable[[], bool | None]) -> Score:
    """Fit and score; a fit that is refused with a message is an alarm of ours."""
    try:
        inputs = subject.trained(seed)
    except InputError:
        return Score(name, family, (True, True, None, None, None), None)
    found = our_checks(inputs)
    failed = any(each.verdict is Verdict.FAIL for each in found)
    warned = failed or any(each.verdict is Verdict.WARN for each in found)
    return Score(
        name, family, (failed, warned, khat_alone(inputs), with_vsbc(), predictive_checks(inputs)), found
    )  # fmt: skip


def mutants(pairs: tuple[Callable[[], Subject], ...], seed: int) -> Iterator[tuple[str, str, Subject]]:
    """Yield family, name and mutant of each operator that applies to each pair."""
    for place, make in enumerate(pairs):
        with seeded(seed):
            subject = make()
        for variant, model in subject.variants.items():
            yield "model", f"{variant}, {subject.name}", subject.with_model(model)
        for family, operators in FAMILIES.items():
            for turn, (operation, operator) in enumerate(operators.items()):
                if (place + turn) % TURNS.get(family, 1):
                    continue
                try:
                    with seeded(OWN_SEED + seed):  # what an operator adds is independent of the data
                        yield family, f"{operation}, {subject.name}", operator(subject)
                except DoesNotApply:
                    continue


def run(pairs: tuple[Callable[[], Subject], ...], seeds: int) -> tuple[list[Score], list[Score]]:
    """Score all mutants of one data set of each pair, and healthy fits of several."""
    broken, healthy, cached = [], [], {}
    refitted = {make().name for make in pairs[::VSBC_TURNS]} if len(pairs) > 2 else set()

    def cached_vsbc(subject: Subject) -> bool | None:
        # neither the data nor the optimiser's options change what VSBC simulates and fits
        key = (id(subject.model), id(subject.guide), subject.closed, subject.guide_handlers)
        if key not in cached:
            cached[key] = (
                vsbc(subject, subject.name in refitted),
                subject,
            )  # the subject is kept so that its identities stay unique
        return cached[key][0]

    for family, name, subject in mutants(pairs, 0):
        try:
            broken.append(score(name, family, subject, 0, lambda subject=subject: cached_vsbc(subject)))
        except DoesNotApply:
            continue
        say(broken[-1])
    for seed in range(seeds):
        for make in pairs:
            with seeded(seed):
                subject = make()
            fitted = [] if not subject.closed else [subject.with_model(subject.model)]
            for each in (subject, *fitted):
                kind = "closed form" if each.closed else "fitted"
                healthy.append(
                    score(
                        f"{subject.name}, {kind}, data set {seed}",
                        "healthy",
                        each,
                        seed,
                        lambda each=each, seed=seed: cached_vsbc(each) if not seed else None,
                    )
                )
                say(healthy[-1])
    return broken, healthy


def say(score: Score) -> None:
    """Print one line: the alarms, and the checks that failed or warned."""
    marks = "".join({True: "x", False: ".", None: " "}[alarm] for alarm in score.alarms)
    loud = [
        f"{e.name} {e.value:.2g} {e.verdict}" for e in score.said or () if e.verdict in (Verdict.FAIL, Verdict.WARN)
    ]
    print(f"{marks} {score.family}: {score.name} | {'; '.join(loud)}", flush=True)


def rate(scores: list[Score], scorer: int) -> str:
    """Return the fraction of alarms among the fits to which a scorer applies, and their number."""
    applied = [score.alarms[scorer] for score in scores if score.alarms[scorer] is not None]
    return f"{sum(applied) / len(applied):.0%} of {len(applied)}" if applied else "-"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="two pairs and one data set; writes nothing")
    parser.add_argument("--healthy", action="store_true", help="healthy fits of all stories")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    started = time.process_time()
    if options.healthy:
        healthy_stories(STORY_SEEDS, started)
        return
    pairs = (PAIRS[0], PAIRS[10]) if options.tiny else (*PAIRS, *QUICK_STORIES)
    broken, healthy = run(pairs, 1 if options.tiny else HEALTHY_SEEDS)
    groups = {family: [score for score in broken if score.family == family] for family in FAMILIES}
    rows = {
        f"{family} mutants": tuple(rate(scores, s) for s in range(len(SCORERS))) for family, scores in groups.items()
    }
    rows["all mutants"] = tuple(rate(broken, s) for s in range(len(SCORERS)))
    rows["healthy twins: false alarms"] = tuple(rate(healthy, s) for s in range(len(SCORERS)))
    misses = [score.name for score in broken if not score.alarms[0]]
    print(f"\nmissed by any fail ({len(misses)}):", *misses, sep="\n- ")
    if options.tiny:
        print(rows, f"{time.process_time() - started:.0f} CPU seconds")
        return
    note = f"{len(broken)} mutants of {len(pairs)} pairs, {time.process_time() - started:.0f} CPU seconds"
    raw = {"mutants": {score.name: score.alarms for score in broken}, "misses": misses}
    report("Detection of broken fits", SCORERS, rows, raw, note)


def healthy_stories(seeds: int, started: float) -> None:
    """Count the checks that fail on healthy fits of all stories."""
    verdicts: Counter[Verdict] = Counter()
    failed: defaultdict[str, int] = defaultdict(int)
    fits = 0
    for seed in range(seeds):
        for make in STORIES:
            with seeded(seed):
                subject = make()
            found = score(f"{subject.name}, data set {seed}", "healthy", subject, seed, lambda: None)
            say(found)
            fits += 1
            for check in found.said or ():
                verdicts[check.verdict] += 1
                failed[check.name] += check.verdict is Verdict.FAIL
    applied = sum(number for verdict, number in verdicts.items() if verdict is not Verdict.NOT_APPLICABLE)
    rows = {name: (str(number),) for name, number in failed.items() if number}
    rows["all checks that apply"] = (f"{verdicts[Verdict.FAIL]} of {applied}, {verdicts[Verdict.FAIL] / applied:.2%}",)
    note = f"{fits} fits, {time.process_time() - started:.0f} CPU seconds"
    raw: dict[str, Any] = {str(verdict): number for verdict, number in verdicts.items()}
    report("False alarms on healthy fits of the stories", ("failed",), rows, raw, note)


if __name__ == "__main__":
    main()

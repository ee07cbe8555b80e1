"""Calibrate the stories and record the results: ``python docs/calibrations.py [STORY ...]``, minutes for each.

Results go to ``models/calibrations.json``, which ``pplgen show`` prints, a verdict to the README's table, figures to
``docs/calibrations``. A story whose calibration fails is recorded as such.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pplgen
from pplgen import models
from pplgen.checks.registry import Verdict
from pplgen.cli.show import calibration_word

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "models" / "calibrations.json"
README = ROOT / "README.md"

CALLS = {
    "gaussian-mixture": "pplgen.calibrate(GaussianMixture(2, 2), num_datasets=200, num_rows=100)",
    "mixed-mixture": "pplgen.calibrate(MixedMixture(2, 5, columns='binary'), num_datasets=100, num_rows=200)",
    "dirichlet-process-mixture": "pplgen.calibrate(DirichletProcessMixture(5, 2), num_datasets=100)",
    "gaussian-hmm": "pplgen.calibrate(GaussianHMM(2, 1), 'nile', num_datasets=100, num_rows=1)",
    "markov-switching-ar": "pplgen.calibrate(MarkovSwitchingAR(2, 1), 'nile', num_datasets=100, num_rows=1)",
    "linear-gaussian-ssm": "pplgen.calibrate(LinearGaussianSSM.local_level(), 'nile', num_datasets=100, num_rows=1)",
    "switching-lds": "pplgen.calibrate(SwitchingLDS(2, 2, 2), num_datasets=50, num_rows=1)",
    "ppca": "pplgen.calibrate(pplgen.fit(PPCA(13, 2), 'wine'), num_datasets=300)",
    "factor-analysis": "pplgen.calibrate(pplgen.fit(FactorAnalysis(13, 2), 'wine'), num_datasets=300)",
    "vae": "pplgen.calibrate(pplgen.fit(VAE(2, 1, likelihood='normal'), 'faithful'), num_datasets=300)",
    "mixture-vae": (
        "pplgen.calibrate(pplgen.fit(MixtureVAE(2, 1, num_components=2, likelihood='normal'), 'faithful'), "
        "num_datasets=300)"
    ),
    "semi-supervised-vae": (
        "pplgen.calibrate(pplgen.fit(SemiSupervisedVAE(2, 1, num_classes=2, likelihood='normal'), 'faithful'), "
        "num_datasets=300)"
    ),
    "autoencoder": "pplgen.calibrate(pplgen.fit(Autoencoder(13, 2), 'wine'), num_datasets=300)",
}
"""Call for each story; a fit without priors is calibrated at its parameters, on rows simulated from it."""


WORST_FIRST = (Verdict.FAIL, Verdict.WARN, Verdict.PASS)


def calibrated(name: str) -> dict[str, Any]:
    """Calibrate one story, save its figure, and return the results, or why it cannot be calibrated."""
    stories = {entry.class_name: getattr(models, entry.class_name) for entry in models.collection()}
    figure = Path(__file__).with_name("calibrations") / f"{name}.png"
    figure.unlink(missing_ok=True)
    try:
        calibration = eval(CALLS[name], {"pplgen": pplgen, **stories})
    except pplgen.InputError as error:
        return {"refused": str(error)}
    calibration.summary()
    checks = dict(zip(calibration.quantities, calibration.checks(), strict=True))
    worst = next(verdict for verdict in WORST_FIRST if any(check.verdict is verdict for check in checks.values()))
    figure.parent.mkdir(exist_ok=True)
    calibration.plot().savefig(figure, dpi=90)
    return {
        "call": CALLS[name],
        "num_datasets": len(calibration.ranks),
        "num_quantities": len(calibration.quantities),
        "smallest_p": float(f"{calibration.p_values.min():.2g}"),
        "verdict": str(worst),
        "not_uniform": [name for name, check in checks.items() if check.verdict is not Verdict.PASS],
        "coverage_of_90": {
            name: round(float(calibration.coverage.loc[name, 0.9]), 2)
            for name, check in checks.items()
            if check.verdict is not Verdict.PASS
        },
    }


def record(name: str, results: dict[str, Any]) -> None:
    """Record the results of a calibration."""
    records = json.loads(RECORD.read_text("utf-8")) | {name: results}
    RECORD.write_text(json.dumps(records, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    verdict = calibration_word(results)
    row = re.compile(rf"^(\| \[`{name}`\].*\|)[^|]*\|$", flags=re.MULTILINE)
    README.write_text(row.sub(rf"\1 {verdict} |", README.read_text("utf-8")), encoding="utf-8")


if __name__ == "__main__":
    for story in sys.argv[1:] or CALLS:
        record(story, calibrated(story))

"""The acceptance of CSL-UCB: identities, pieces at the card's sizes, and what it all earns."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.causal_bandits import csl, identification, probes
from experiments.common import app, report

# The sizes at which the demands were calibrated; other runs report.
_CALIBRATED = {
    "num_nodes": 6,
    "horizon": 1000,
    "mi_weight": 1.0,
    "n_max": 100,
    "width": "code",
    "explore": "ucb",
}
_ENOUGH_INSTANCES, _ENOUGH_GRAPHS = 10, 6
_SAMPLES = 240
# The abstract: 67 % fewer samples than prior art, and 85 % more reward.
_FEWER, _MORE = 0.67, 0.85
_SETTINGS = {"": "stationary", "_changing": "non-stationary"}
_SAMPLE_SETTINGS = {
    "": "samples until no edge is missing, stationary",
    "_changing": "new samples until no edge is missing, non-stationary",
    "_told": "new samples until no edge is missing, non-stationary, CSL-UCB told the columns",
}
_REWARD_RIVALS = ("vanilla_ucb", "golem_mab", "notears_greedy", "linsem_ts")
_SAMPLE_RIVALS = ("golem_mab", "notears_greedy", "csl_symmetric")


def claims(config: Any, outcomes: Mapping[str, app.Outcome]) -> Sequence[report.Claim]:
    """Judge a run.

    Args:
      config: The settings.
      outcomes: Outcome by method.

    Returns:
      The claims: parity, the acceptance items in their order, the abstract's two numbers.
    """
    parity = report.golden_parity("causal_bandits", config.preset)
    return [
        parity,
        *_against_vanilla(config, outcomes),
        *_graphs(config, outcomes),
        *pieces(),
        *_changes(config, outcomes),
        *_fewer_samples(config, outcomes),
        *_more_reward(config, outcomes),
    ]


def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Ratio of two means over instances, as one (jackknife) value an instance.

    The values' mean is the ratio without its leading bias, and their standard error is the
    ratio's. A mean of ratios would be ruled by instances whose denominator is near 0.

    Args:
      above: One value an instance (B,), B >= 2.
      below: The same for the denominator.

    Returns:
      Pseudo-values (B,).
    """
    count = len(above)
    without = (above.sum() - above) / (below.sum() - below)
    return count * above.mean() / below.mean() - (count - 1) * without


def _against_vanilla(config: Any, outcomes: Mapping[str, app.Outcome]) -> list[report.Claim]:
    statements = (
        "regret of CSL-UCB / regret of vanilla UCB, same systems",
        "share of optimal actions in the last 100 steps, CSL-UCB minus vanilla UCB",
    )
    if not {"csl_ucb", "vanilla_ucb"} <= set(outcomes):
        return [report.not_measured(s, "needs --compare") for s in statements]
    ours, theirs = outcomes["csl_ucb"].metrics, outcomes["vanilla_ucb"].metrics
    if len(ours["regret"]) < 2:
        return [report.not_measured(s, "needs two instances or more") for s in statements]
    judged = _is_calibrated(config) and config.num_seeds >= _ENOUGH_INSTANCES
    share = ours["optimal_share"] - theirs["optimal_share"]
    return [
        _demand(judged, statements[0], ratio(ours["regret"], theirs["regret"]), "<=", 0.95),
        _demand(judged, statements[1], share, ">=", 0.0),
    ]


def _graphs(config: Any, outcomes: Mapping[str, app.Outcome]) -> list[report.Claim]:
    statements = (
        f"missing edges at {_SAMPLES} samples, w = 1",
        f"missing edges at {_SAMPLES} samples, w = 0",
        f"superfluous minus missing edges at {_SAMPLES} samples, w = 1",
    )
    missing = ""
    if not {"csl_ucb", "csl_symmetric"} <= set(outcomes):
        missing = "needs --compare"
    elif _SAMPLES not in config.sample_sizes:
        missing = f"--sample_sizes lacks {_SAMPLES}"
    if missing:
        return [report.not_measured(s, missing) for s in statements]
    at = list(config.sample_sizes).index(_SAMPLES)
    ours, plain = (outcomes[m].arrays for m in ("csl_ucb", "csl_symmetric"))
    absent = ours["errors_missing"][:, at]
    judged = _is_calibrated(config) and config.num_seeds >= _ENOUGH_GRAPHS
    superfluous = ours["errors_superfluous"][:, at]
    return [
        _demand(judged, statements[0], absent, "<=", 0.05),
        _demand(judged, statements[1], plain["errors_missing"][:, at], ">=", 0.4),
        _demand(judged, statements[2], superfluous - absent, ">=", 0.0),
    ]


def pieces() -> list[report.Claim]:
    """The width, the test for change and the exact identities, at the card's sizes.

    Returns:
      The claims.
    """
    found, changes, regret = probes.widths(), probes.changes(), probes.oracle_regret()
    note = f"N = {probes.NODES}, {probes.WIDTH_SYSTEMS} systems x 11 actions"
    made = []
    for name, width in (("code", found.code), ("theorem", found.theorem)):
        covered = (found.error <= width).mean(axis=(1, 2))
        shrunk = ratio(width[:, 1].mean(axis=1), width[:, 0].mean(axis=1))
        made += [
            report.claim(
                f"share of rewards within the width ({name}), 100 and 200 samples",
                covered,
                ">=",
                0.95,
                note=note,
            ),
            *(
                report.claim(
                    f"width ({name}) at 200 samples / at 100 samples (theory 0.71)",
                    shrunk,
                    relation,
                    bound,
                    note=note,
                )
                for relation, bound in ((">=", 0.5), ("<=", 0.8))
            ),
        ]
    noticed = changes.changed <= probes.RELEVANT
    note = f"N = {probes.NODES}, {probes.CHANGE_SYSTEMS} systems, weights from 200 samples"
    false = (changes.unchanged <= probes.RELEVANT).mean(axis=(1, 2))
    errors = regret.mean() / (regret.std(ddof=1) / np.sqrt(regret.size))
    return [
        *made,
        report.claim(
            f"columns without change that are declared changed within {probes.RELEVANT} samples",
            false,
            "<",
            0.01,
            note=note,
        ),
        report.claim(
            f"redrawn columns declared changed within {probes.RELEVANT} samples of theirs",
            noticed.astype(float),
            ">=",
            0.6,
            note=note,
        ),
        report.claim(
            "rewards by elimination against sums over paths: largest relative difference",
            probes.path_sums(),
            "<=",
            1e-10,
            note=f"N = {probes.NODES}, {probes.WIDTH_SYSTEMS} systems, all actions",
        ),
        report.claim(
            "mean regret of the best action, distance from 0 in standard errors",
            abs(errors),
            "<=",
            4.0,
            note=f"{regret.size} plays",
        ),
    ]


def _changes(config: Any, outcomes: Mapping[str, app.Outcome]) -> list[report.Claim]:
    statements = {
        "again": "column samples collected again after declared changes, changed columns only / "
        "full restart",
        "steps": "random plays after the first learning, changed columns only / full restart",
        "regret": "regret while the graph changes, CSL-UCB / full restart",
        "blind": "regret while the graph changes, CSL-UCB / without looking for changes",
        "vanilla": "regret while the graph changes, CSL-UCB / vanilla UCB",
        "noticed": "share of changes that CSL-UCB noticed",
        "delay": "steps from a change to its first declaration (those not noticed count in full)",
        "wrong": "share of declared columns that had not changed last",
    }
    needed = {"csl_ucb", "csl_restart", "csl_blind", "vanilla_ucb"}
    missing = ""
    if not config.nonstationary:
        missing = "needs --nonstationary"
    elif not needed <= set(outcomes):
        missing = "needs --compare"
    elif config.num_seeds < 2:
        missing = "needs two instances or more"
    if missing:
        return [report.not_measured(s, missing) for s in statements.values()]
    ours, restart = outcomes["csl_ucb"], outcomes["csl_restart"]
    regret = {m: outcomes[m].metrics["regret_changing"] for m in needed}
    collected = [o.arrays["detection_declared"] * float(csl.SAMPLES) for o in (ours, restart)]
    first = ours.metrics["exploring"]
    plays = [o.metrics["exploring_changing"] - first for o in (ours, restart)]
    declared, wrong = (ours.arrays[f"detection_{n}"].astype(float) for n in ("declared", "wrong"))
    made = []
    if collected[1].sum() > 0:
        made.append(_demand(True, statements["again"], _share(*collected), "<", 0.5))
        made.append(report.report_only(statements["steps"], _share(*plays)))
    else:
        made += [
            report.not_measured(statements[n], "no change was declared") for n in ("again", "steps")
        ]
    for name, rival in (
        ("regret", "csl_restart"),
        ("blind", "csl_blind"),
        ("vanilla", "vanilla_ucb"),
    ):
        made.append(report.report_only(statements[name], ratio(regret["csl_ucb"], regret[rival])))
    made.append(
        report.report_only(statements["noticed"], ours.arrays["detection_noticed"].mean(axis=1))
    )
    made.append(
        report.report_only(statements["delay"], ours.arrays["detection_delay"].mean(axis=1))
    )
    if declared.sum() > 0:
        made.append(report.report_only(statements["wrong"], _share(wrong, declared)))
    else:
        made.append(report.not_measured(statements["wrong"], "no change was declared"))
    return made


def identified(arrays: Mapping[str, np.ndarray], suffix: str) -> np.ndarray:
    """Whether a method's graphs have no missing edge.

    Args:
      arrays: Of the method's outcome.
      suffix: "" for the systems at the beginning; "_changing" for the systems after their first
        change, where a method that must notice it must have declared all changed columns;
        "_told" for the same systems and columns that were told.

    Returns:
      Booleans (B, sizes).
    """
    return (arrays[f"errors_missing{suffix}"] == 0) & arrays.get(f"declared{suffix}", True)


def _fewer_samples(config: Any, outcomes: Mapping[str, app.Outcome]) -> list[report.Claim]:
    made = []
    for suffix, setting in _SAMPLE_SETTINGS.items():
        for rival in _SAMPLE_RIVALS:
            statement = f"{setting}: 1 - CSL-UCB / {rival} (paper: 0.67)"
            if suffix and not config.nonstationary:
                made.append(report.not_measured(statement, "needs --nonstationary"))
                continue
            if not {"csl_ucb", rival} <= set(outcomes) or config.num_seeds < 2:
                made.append(report.not_measured(statement, "needs --compare and two instances"))
                continue
            counts, notes = [], []
            # Whoever is told of a change starts anew, so rivals know one way only.
            for method, of in (("csl_ucb", suffix), (rival, suffix and "_changing")):
                reached = identified(outcomes[method].arrays, of)
                count, enough = identification.samples_until(reached, config.sample_sizes)
                counts.append(count)
                notes.append(f"{method}: {count.mean():.0f}, {int((~enough).sum())} never")
            note = "; ".join(notes) + f" within {config.sample_sizes[-1]}, which counts for them"
            values = 1 - ratio(*counts)
            if suffix == "_told":
                made.append(report.report_only(statement, values, note=note))
            else:
                made.append(report.claim(statement, values, ">=", _FEWER, note=note))
    return [*made, *_renewed(config, outcomes)]


def _renewed(config: Any, outcomes: Mapping[str, app.Outcome]) -> list[report.Claim]:
    statements = (
        "share of changed systems of which CSL-UCB declared all changed columns",
        "new samples until no edge is missing, non-stationary, CSL-UCB, declared or not",
    )
    missing = ""
    if not config.nonstationary:
        missing = "needs --nonstationary"
    elif "csl_ucb" not in outcomes:
        missing = "needs csl_ucb"
    if missing:
        return [report.not_measured(s, missing) for s in statements]
    arrays = outcomes["csl_ucb"].arrays
    sizes = config.sample_sizes
    count, enough = identification.samples_until(arrays["errors_missing_changing"] == 0, sizes)
    within = f"within {sizes[-1]} new samples"
    return [
        report.report_only(
            statements[0], arrays["declared_changing"][:, -1].astype(float), note=within
        ),
        report.report_only(
            statements[1], count, note=f"{int((~enough).sum())} never {within}, which counts"
        ),
    ]


def _more_reward(config: Any, outcomes: Mapping[str, app.Outcome]) -> list[report.Claim]:
    made = []
    for suffix, setting in _SETTINGS.items():
        for rival in _REWARD_RIVALS:
            statement = f"mean reward, {setting}: CSL-UCB / {rival} - 1 (paper: 0.85)"
            if suffix and not config.nonstationary:
                made.append(report.not_measured(statement, "needs --nonstationary"))
            elif not {"csl_ucb", rival} <= set(outcomes) or config.num_seeds < 2:
                made.append(report.not_measured(statement, "needs --compare and two instances"))
            else:
                ours, theirs = (outcomes[m].metrics[f"reward{suffix}"] for m in ("csl_ucb", rival))
                error = theirs.std(ddof=1) / np.sqrt(len(theirs))
                note = f"{ours.mean():.2f} and {theirs.mean():.2f} ± {error:.2f}"
                if theirs.mean() <= 2 * error:
                    why = f"the rival's reward may be 0, so there is no ratio: {note}"
                    made.append(report.not_measured(statement, why))
                    continue
                made.append(
                    report.claim(statement, ratio(ours, theirs) - 1, ">=", _MORE, note=note)
                )
    return made


def _share(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """`ratio`, or the plain ratio where one instance alone holds all of the denominator."""
    if np.any(below == below.sum()):
        return np.atleast_1d(above.sum() / below.sum())
    return ratio(above, below)


def _demand(
    judged: bool, statement: str, values: np.ndarray, relation: str, threshold: float
) -> report.Claim:
    if judged:
        return report.claim(statement, values, relation, threshold)
    return report.report_only(statement, values)


def _is_calibrated(config: Any) -> bool:
    return not config.data_dir and all(
        getattr(config, name) == value for name, value in _CALIBRATED.items()
    )

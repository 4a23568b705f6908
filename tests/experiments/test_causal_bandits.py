"""The causal-bandits binary: systems, the loop, agents, methods, resume, bad input."""

import dataclasses
import functools
import itertools
import re
import shutil
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import pytest

from asym import causal
from experiments.causal_bandits import (
    bandit,
    claims,
    continuous,
    csl,
    detection,
    identification,
    main,
    probes,
    renewal,
    rivals,
    settings,
    systems,
)
from experiments.common import app, files, report, seeds

CHOSEN = ("csl_ucb", "vanilla_ucb", "golem_mab", "csl_symmetric", "csl_restart", "csl_blind")
SHORT = ["--preset=smoke", "--nonstationary"]


def run(workdir, *words):
    return app.run(main.EXPERIMENT, ["causal_bandits", *SHORT, f"--workdir={workdir}", *words])


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """The methods that most claims are about; the pieces' own claims have a test below."""
    workdir = tmp_path_factory.mktemp("compared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(claims, "pieces", list)
        assert run(workdir, f"--methods={','.join(CHOSEN)}") == 0
    return workdir, files.read_json(workdir / "results.json")


def test_compare_runs_both_settings(compared):
    workdir, results = compared
    assert (workdir / "figures" / "causal_bandits.png").stat().st_size > 20_000
    for method, measured in results["methods"].items():
        assert len(measured["regret_changing"]["per_seed"]) == 2
        assert ("regret" in measured) is (method not in settings.ONLY_CHANGING)
        learner = method in settings.LEARNERS
        for name in ("samples_until_identified", "samples_until_identified_changing"):
            assert (name in measured) is learner
    regrets = [m["regret_changing"]["mean"] for m in results["methods"].values()]
    assert len(set(regrets)) > 3


def test_numbers_of_other_sizes_are_reported_and_not_judged(compared):
    _, results = compared
    judged = results["claims"]
    assert judged[0]["statement"] == report.PARITY
    by_statement = {c["statement"]: c for c in judged}
    ratio = by_statement["regret of CSL-UCB / regret of vanilla UCB, same systems"]
    assert ratio["measured"] is not None
    assert ratio["holds"] is None
    # Twice the abstract's reward, for two of four rivals; the samples for two of three, in two
    # settings, and in one of them told which columns changed, which is reported.
    wanted = [c for c in judged if "(paper: 0.85)" in c["statement"] and c["measured"] is not None]
    assert len(wanted) == 4
    assert all(c["threshold"] == 0.85 and c["standard_error"] is not None for c in wanted)
    fewer = [c for c in judged if "(paper: 0.67)" in c["statement"] and c["measured"] is not None]
    assert [c["threshold"] for c in fewer] == [0.67] * 4 + [None] * 2
    assert [c["statement"].split(": 1 -")[0].split(", ", 1)[1] for c in fewer[::2]] == [
        "stationary",
        "non-stationary",
        "non-stationary, CSL-UCB told the columns",
    ]


def test_a_second_run_measures_only_what_is_missing(compared, tmp_path, capsys, monkeypatch):
    workdir, results = compared
    shutil.copytree(workdir, tmp_path / "again")
    (tmp_path / "again" / "results.json").unlink()
    (tmp_path / "again" / "outcomes" / "vanilla_ucb.npz").unlink()
    monkeypatch.setattr(claims, "pieces", list)
    assert run(tmp_path / "again", f"--methods={','.join(CHOSEN)}") == 0
    said = capsys.readouterr().out
    assert "causal_bandits: vanilla_ucb" in said
    assert "causal_bandits: csl_ucb" not in said
    again = files.read_json(tmp_path / "again" / "results.json")
    assert again["methods"] == results["methods"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--horizon=250"], "must be a multiple of 100"),
        (["--change_times=300"], "must rise and be below"),
        (["--change_times=200,100"], "must rise"),
        (["--sample_sizes=60,20"], "must rise"),
        (["--nononstationary", "--change_times=100"], "needs --nonstationary"),
        (["--nononstationary", "--method=csl_blind"], "needs --nonstationary"),
        (["--method=vanilla_ucb", "--mi_weight=0"], "does not use it"),
        (["--method=csl_symmetric", "--mi_weight=2"], "does not use it"),
        (["--method=csl_ucb", "--continuous_steps=10"], "does not use it"),
        (["--method=linsem_ts", "--sample_sizes=40"], "does not use it"),
        (["--data_dir=nowhere"], "--nonstationary changes drawn systems"),
        (["--nononstationary", "--data_dir=nowhere"], "cannot read nowhere/B.npy"),
        (["--num_nodes=1"], "must be at least 2"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, words, line):
    assert run(tmp_path, *words) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ")
    assert "\n" not in said
    assert line in said


def save_system(folder, **changed):
    arrays = {
        "B": np.array([[0, 1.0], [0, 0]]),
        "B_int": np.array([[0, -1.0], [0, 0]]),
        "nu": np.array([2.0, 0]),
        "sigma": np.diag([0.25, 1.0]),
    }
    for name, array in (arrays | changed).items():
        np.save(folder / f"{name}.npy", array)


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"B": np.zeros((3, 3))}, "shape"),
        ({"B": np.array([[0, np.nan], [0, 0]])}, "not finite"),
        ({"B_int": np.array([[0, 0], [1.0, 0]])}, "have a cycle"),
        ({"sigma": np.ones((2, 2))}, "must be diagonal"),
        ({"nu": np.array(["a", "b"])}, "array of numbers"),
    ],
)
def test_bad_files_are_one_line(tmp_path, capsys, changed, line):
    save_system(tmp_path, **changed)
    words = ["--nononstationary", f"--data_dir={tmp_path}", "--num_nodes=2"]
    assert run(tmp_path / "run", *words) == 2
    said = capsys.readouterr().err.strip()
    assert line in said
    assert "\n" not in said


def test_a_system_from_files(tmp_path, x64):
    save_system(tmp_path)
    config = main.EXPERIMENT.settings("smoke", data_dir=str(tmp_path), num_nodes=2)
    system = main.draw_phases(config, seeds.keys(0, 3))
    assert system.weights.shape == (3, 1, 2, 2, 2)
    np.testing.assert_array_equal(system.noise_scale[1, 0], [0.5, 1])
    first = jax.tree.map(lambda leaf: jnp.asarray(leaf[0, 0]), system)
    np.testing.assert_allclose(first.rewards(causal.all_actions(2)), [2, -2, 2, -2])


def test_systems_are_drawn_as_the_paper_does(x64):
    drawn = jax.jit(jax.vmap(lambda key: systems.draw(key, 5)))(seeds.keys(0, 200))
    weights = np.asarray(drawn.weights)
    assert np.all(weights == np.triu(weights, 1))
    differ = np.any(weights[:, 0] != weights[:, 1], axis=1)
    assert np.all(differ[:, 1:])
    used = np.abs(weights[weights != 0])
    assert used.min() >= 0.5
    assert used.max() <= 2
    # 4000 edges of probability a half, which the redrawing raises a little.
    assert 0.45 < len(used) / (200 * 2 * 10) < 0.65
    assert abs(np.mean(weights[weights != 0] > 0) - 0.5) < 0.05


def test_changes_cost_the_old_optimum_its_rank(x64):
    def both(key):
        return systems.phases(
            systems.draw(key, 4), jax.random.fold_in(key, 9), changes=2, columns=2
        )

    drawn = jax.jit(jax.vmap(both))(seeds.keys(0, 40))
    actions = causal.all_actions(4)
    rewards = jax.jit(jax.vmap(jax.vmap(lambda s: s.rewards(actions))))(drawn)
    optimal = np.asarray(systems.is_optimal(rewards))
    weights = np.asarray(drawn.weights)
    for before, after in itertools.pairwise(range(3)):
        assert not np.any(optimal[:, before] & optimal[:, after])
        changed = np.any(weights[:, before] != weights[:, after], axis=2)
        counts = changed.sum(axis=(1, 2))
        assert set(counts) <= {1, 2}
        # The columns in force under the old optimal actions, and they alone.
        for place, pairs in enumerate(changed):
            for value, node in zip(*np.nonzero(pairs), strict=True):
                assert np.all(np.asarray(actions)[optimal[place, before]][:, node] == value)


@functools.cache
def fixed(number=2):
    """Systems of three nodes in two phases that do not differ; sizes of the smoke preset."""
    drawn = jax.jit(jax.vmap(lambda key: systems.draw(key, 3)))(seeds.keys(0, number))
    return jax.tree.map(lambda leaf: jnp.stack([leaf, leaf], 1), drawn)


def play(agent, *, number=2, phases=None, time=300, options=None):
    """300 steps of instances whose second phase begins at a time."""
    return bandit.play(
        agent,
        phases or fixed(number),
        seeds.keys(1, number),
        times=(time,),
        horizon=300,
        description="test",
        options=options,
    )


def test_the_best_action_has_no_regret_but_noise(x64):
    played = play(rivals.oracle(3))
    assert np.all(played.optimal)
    error = played.regret.std(ddof=1) / np.sqrt(played.regret.size)
    assert abs(played.regret.mean()) < 4 * error


def test_an_instance_does_not_depend_on_its_neighbours(x64):
    two, one = (play(rivals.vanilla_ucb(3, windowed=True), number=n) for n in (2, 1))
    np.testing.assert_allclose(two.regret[:1], one.regret, rtol=1e-12)
    # No action is forgotten.
    assert np.all(two.memory.plays.sum(axis=1) == 300)
    assert np.all(two.memory.plays >= 1)


class Diary(NamedTuple):
    given: jax.Array
    found: jax.Array


@pytest.mark.parametrize("number", [1, 2])
def test_work_that_nobody_wants_is_not_done(x64, number):
    # Of one instance the compiler used to do it at every step, and threw it away: 300 of these
    # would take a minute.
    def work(memory, step):
        long = jax.lax.fori_loop(0, 3 * 10**7, lambda _, x: jnp.cos(x), memory.given)
        return {"found": memory.found + long}

    idler = bandit.Agent(
        start=lambda known, options: Diary(known.noise_mean[0], jnp.array(0.0)),
        choose=lambda memory, step, key: (memory, jnp.zeros(3, jnp.int32)),
        observe=lambda memory, step, action, seen: memory._replace(given=seen[0]),
        services=(bandit.Service(lambda memory, step: step == 7, work, lanes=2),),
    )
    begin = time.perf_counter()
    played = play(idler, number=number)
    assert time.perf_counter() - begin < 20
    np.testing.assert_allclose(played.memory.found, 0.739085, rtol=1e-4)


def test_known_parents_are_soon_exploited(x64):
    played = play(rivals.linsem_ts(3))
    assert played.optimal[:, 100:].mean() > 0.8
    # Each step adds its products to one of the two precisions of every column.
    total = np.asarray(played.memory.precision).sum(axis=1)
    np.testing.assert_allclose(total, np.stack([total[:, 0]] * 3, axis=1), rtol=1e-10)


AGENT = csl.agent(csl.Shape(nodes=3, horizon=300, n_max=100, lanes=2))
OPTIONS = (1.0, 1.0, False, False, False)


def options(**changed):
    return csl.Options(*map(jnp.array, OPTIONS))._replace(
        **{name: jnp.array(value) for name, value in changed.items()}
    )


@pytest.fixture(scope="module")
def learnt():
    """CSL-UCB on two fixed systems."""
    with jax.enable_x64(True):
        return play(AGENT, options=options())


def test_csl_explores_until_every_column_has_its_samples(learnt):
    exploring = learnt.trace["exploring"]
    assert np.all(np.diff(exploring.astype(int), axis=1) <= 0)
    actions = np.asarray(learnt.memory.actions)
    for instance, last in enumerate(exploring.sum(axis=1)):
        plays = [np.sum(actions[instance, :, :last] == bit, axis=1) for bit in (0, 1)]
        assert np.min(plays) == csl.SAMPLES
        # Afterwards the action changes only where the weights are estimated.
        later = actions[instance][:, last:]
        moved = np.nonzero(np.any(np.diff(later, axis=1) != 0, axis=0))[0] + last + 1
        assert set(moved % csl.WEIGHTS_EVERY) <= {0}
    assert not learnt.trace["flagged"].any()


def test_csl_learns_graphs_and_exploits_them(learnt):
    for graph in np.asarray(learnt.memory.graphs).reshape(-1, 3, 3):
        assert nx.is_directed_acyclic_graph(nx.DiGraph(graph))
    weights = np.asarray(learnt.memory.weights)
    assert np.all((weights != 0) <= np.asarray(learnt.memory.graphs))
    assert learnt.optimal[:, 200:].mean() > 0.6


def test_the_greedy_rule_plays_the_best_estimate(x64):
    memory = play(AGENT, options=options(optimism=0.0)).memory
    for instance in range(2):
        rewards = causal.expected_reward(
            observational=memory.weights[instance, 0],
            interventional=memory.weights[instance, 1],
            noise_mean=memory.noise_mean[instance],
            actions=causal.all_actions(3),
        )
        best = causal.all_actions(3)[jnp.argmax(rewards)]
        np.testing.assert_array_equal(memory.arm[instance], best)


@pytest.mark.parametrize("restart", [False, True])
def test_only_declared_columns_are_collected_again(x64, restart):
    # The columns of the last node turn round and grow, whatever the action.
    phases = fixed(2)
    weights = phases.weights.at[:, 1, :, :, -1].multiply(-3.0)
    played = play(
        AGENT,
        phases=phases._replace(weights=weights),
        time=210,
        options=options(look=True, restart=restart),
    )
    for instance in range(2):
        flagged = played.trace["flagged"][instance]
        (steps,) = np.nonzero(flagged.any(axis=(1, 2)))
        assert steps[0] > 210
        assert flagged[steps[0]].sum() == (6 if restart else 1)
        start = np.asarray(played.memory.start[instance])
        ever = flagged.any(axis=0)
        assert np.all(start[~ever] == 0)
        assert np.all(start[ever] > 208)
        # Random plays begin with the declaration.
        assert not played.trace["exploring"][instance, steps[0] - 1]
        assert played.trace["exploring"][instance, steps[0]]


def test_descent_finds_a_strong_edge(x64):
    weights = jnp.array([[0, 2.0], [0, 0]])
    flow = jnp.linalg.inv(jnp.eye(2) - weights)
    rule = continuous.Rule(nodes=2, objective="golem", samples=10, steps=4000)
    data = continuous.Moments(
        jnp.array([1000, 1000]), jnp.zeros((2, 2)), jnp.stack([1000 * flow.T @ flow] * 2)
    )
    learn = jax.jit(continuous.learn, static_argnums=2)
    for objective in ("golem", "notears"):
        found = learn(data, jnp.zeros(2), dataclasses.replace(rule, objective=objective))
        np.testing.assert_allclose(found, [weights, weights], atol=1e-8)


def test_samples_until_there_is_no_error():
    errors = np.array([[0.5, 0, 0.1], [0.2, 0.1, 0.1], [0, 0, 0]])
    count, enough = identification.samples_until(errors == 0, (10, 20, 40))
    assert count.tolist() == [20, 40, 10]
    assert enough.tolist() == [True, False, True]


def test_graphs_from_more_samples_have_fewer_errors(x64):
    system = jax.tree.map(lambda leaf: leaf[:, 0], fixed(2))
    found = identification.by_columns((20, 160), system, seeds.keys(2, 2), log_weight=1.0, lanes=2)
    assert found.missing.shape == (2, 2)
    assert found.missing[:, 1].mean() <= min(0.05, found.missing[:, 0].mean())
    assert np.all(found.gap >= 0)


def changed():
    """Fixed systems both of whose last columns change, to weights that were never drawn."""
    phases = fixed(2)
    new = jnp.array([3.0, -3.0, 0.0])
    return phases._replace(weights=phases.weights.at[:, 1, :, :, -1].set(new))


def renew(phases, **chosen):
    """One new sample, and 90."""
    return renewal.by_columns(
        (1, 90),
        phases,
        seeds.keys(3, 2),
        change=210,
        n_max=100,
        options=options(**{"look": True, **chosen}),
        lanes=2,
    )


def test_new_samples_after_a_change(x64):
    found = renew(changed())
    # One sample is of one of the two columns.
    assert found.declared.tolist() == [[False, True]] * 2
    # Without samples a column has no edges; undeclared, it keeps those that it had.
    assert np.all(found.told.missing[:, 0] > found.errors.missing[:, 0])
    for errors in (found.errors, found.told):
        assert np.all(errors.missing[:, 1] <= errors.missing[:, 0])
        assert np.all(errors.gap[:, 1] < 1e-9)


def test_who_does_not_look_declares_nothing(x64):
    found = renew(changed(), look=False)
    assert not found.declared.any()
    # Nothing is to be declared where nothing changes, and nobody can be told.
    found = renew(fixed(2))
    assert found.declared.all()
    np.testing.assert_array_equal(found.errors.missing, found.told.missing)


def operations_of_solves(lowered):
    """What each batch of eliminations costs, by the count that jaxlib goes by."""
    lines = [line for line in lowered.as_text().splitlines() if "@lapack_dgetrf" in line]
    shapes = [re.findall(r"-> \(tensor<([\dx]+)xf64>", line)[0].split("x") for line in lines]
    return [np.prod([int(size) for size in shape]) * int(shape[-1]) for shape in shapes]


@pytest.mark.parametrize(("nodes", "lanes"), [(6, 2), (10, 2), (10, 100)])
def test_no_batches_of_solves_wait_for_each_other(x64, nodes, lanes):
    agent = csl.agent(csl.Shape(nodes, horizon=300, n_max=100, lanes=lanes))
    known = bandit.Known(jnp.ones(nodes), jnp.ones(nodes), jnp.zeros((1, 2, nodes, nodes)), ())
    memory = agent.start(known, options())
    memories = jax.tree.map(lambda leaf: jnp.stack([leaf] * lanes), memory)
    estimate = agent.services[1].work
    lowered = jax.jit(jax.vmap(estimate, (0, None))).lower(memories, jnp.int32(100))
    # The width's and the mean's run at once: each is to stay in the thread that calls it.
    assert max(operations_of_solves(lowered)) < 200_000


def test_no_batches_of_solves_of_the_pieces_wait_for_each_other(x64):
    drawn = probes._draw(probes.CHANGE_SYSTEMS)
    assert max(operations_of_solves(probes._estimate.lower(*drawn))) < 200_000


def test_the_wanderer_plays_at_random(x64):
    shape = csl.Shape(nodes=3, horizon=300, n_max=100, lanes=2)
    played = play(renewal.wanderer(shape), options=options(look=True))
    share = np.asarray(played.memory.actions).mean(axis=2)
    assert np.all(np.abs(share - 0.5) < 4 * 0.5 / np.sqrt(300))
    assert played.trace["start"].shape == (2, 300, 2, 3)


def test_an_edge_is_identified_once_its_change_is_declared():
    arrays = {
        "errors_missing": np.array([[0.1, 0]]),
        "errors_missing_changing": np.array([[0.0, 0]]),
        "declared_changing": np.array([[False, True]]),
        "errors_missing_told": np.array([[0.0, 0]]),
    }
    assert claims.identified(arrays, "").tolist() == [[False, True]]
    assert claims.identified(arrays, "_changing").tolist() == [[False, True]]
    assert claims.identified(arrays, "_told").tolist() == [[True, True]]
    del arrays["declared_changing"]
    assert claims.identified(arrays, "_changing").tolist() == [[True, True]]


def test_detections():
    weights = np.zeros((1, 3, 2, 2, 2))
    weights[0, 1:, 1, 0, 1] = 1
    weights[0, 2, 0, 0, 1] = 1
    flagged = np.zeros((1, 30, 2, 2), bool)
    flagged[0, 5, 0, 0] = True
    flagged[0, 12, 0, 1] = flagged[0, 14, 1, 1] = True
    found = detection.judge(weights, (10, 20), flagged)
    assert found.noticed.tolist() == [[True, False]]
    assert found.delay.tolist() == [[4, 10]]
    assert (found.declared.tolist(), found.wrong.tolist()) == ([3], [2])


def test_ratio_of_means():
    above, below = np.array([1.0, 2, 6]), np.array([2.0, 3, 4])
    values = claims.ratio(above, below)
    leave = [(above.sum() - a) / (below.sum() - b) for a, b in zip(above, below, strict=True)]
    np.testing.assert_allclose(values, 3 * 1.0 - 2 * np.array(leave))
    np.testing.assert_allclose(claims.ratio(3 * below, below), 3)


def test_the_pieces_have_their_sizes(monkeypatch):
    monkeypatch.setattr(claims.probes, "WIDTH_SYSTEMS", 2)
    monkeypatch.setattr(claims.probes, "CHANGE_SYSTEMS", 4)
    made = claims.pieces()
    assert len(made) == 10
    assert all(c.threshold is not None and np.isfinite(c.measured) for c in made)
    assert [c.holds for c in made[:7]] == [True] * 7

"""CSL-UCB: learn a causal graph with superfluous edges rather than missing ones, then exploit it.

COMMAND   ./run causal_bandits              (quick preset, all methods, both settings)
RESULT    see README.md, made from results/results.json
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.causal_bandits import (
    bandit,
    claims,
    continuous,
    csl,
    detection,
    figures,
    identification,
    renewal,
    rivals,
    settings,
    systems,
)
from experiments.causal_bandits.settings import CONTINUOUS, METHODS, PRESETS, Config
from experiments.common import app
from experiments.common.errors import UserError


def measure(config: Config, run: app.Run) -> app.Outcome:
    """Plays one method in one setting or in two, and measures its graphs.

    Args:
      config: The settings, with the method.
      run: The run.

    Returns:
      Metrics by instance, and the curves of the figure.
    """
    config = dataclasses.replace(config, **settings.RECIPES.get(config.method, {}))
    # Least squares by normal equations squares condition numbers, too much for float32.
    with jax.enable_x64(True):
        phases = draw_phases(config, run.seed_keys)
        metrics: dict[str, np.ndarray] = {}
        arrays: dict[str, np.ndarray] = {}
        if config.method not in settings.ONLY_CHANGING:
            played = play(config, phases, run.seed_keys, changing=False)
            summarise(played, metrics, arrays, "")
        if config.nonstationary:
            played = play(config, phases, run.seed_keys, changing=True)
            summarise(played, metrics, arrays, "_changing")
            if "flagged" in played.trace:
                found = detection.judge(
                    np.asarray(phases.weights), config.change_times, played.trace["flagged"]
                )
                arrays |= {f"detection_{name}": value for name, value in found._asdict().items()}
        if config.method in settings.LEARNERS:
            measure_graphs(config, phases, run.seed_keys, metrics, arrays)
    return app.Outcome(metrics, arrays)


def draw_phases(config: Config, keys: jax.Array) -> systems.System:
    """The systems of all instances.

    Args:
      config: The settings.
      keys: One key an instance (B,).

    Returns:
      Systems (B, P, ...): one phase, or with --nonstationary one more than there are changes.

    Raises:
      UserError: --data_dir does not hold a system, or one of another size.
    """
    changes = len(config.change_times) if config.nonstationary else 0
    if config.data_dir:
        system = systems.load(config.data_dir)
        nodes = len(system.noise_mean)
        if nodes != config.num_nodes:
            raise UserError(f"--num_nodes={config.num_nodes}: {config.data_dir} has {nodes} nodes")
        return jax.tree.map(lambda leaf: np.broadcast_to(leaf, (len(keys), 1, *leaf.shape)), system)

    def one(key: jax.Array) -> systems.System:
        first, later = jax.random.split(jax.random.fold_in(key, 0))
        return systems.phases(
            systems.draw(first, config.num_nodes),
            later,
            changes=changes,
            columns=config.changed_columns,
        )

    return jax.jit(jax.vmap(one))(keys)


def play(config: Config, phases: systems.System, keys: jax.Array, *, changing: bool) -> bandit.Play:
    """Lets the method play all instances.

    Args:
      config: The settings, with the method and what it sets.
      phases: Systems (B, P, ...).
      keys: One key an instance (B,).
      changing: Whether the systems change; agents that can look for changes then do.

    Returns:
      What happened.
    """
    agent, options = make_agent(config, changing=changing)
    changes = phases.weights.shape[1] - 1
    return bandit.play(
        agent,
        phases,
        jax.vmap(jax.random.fold_in, (0, None))(keys, 1),
        times=config.change_times if changing else [config.horizon] * changes,
        horizon=config.horizon,
        description=f"{config.method}, {'changing' if changing else 'stationary'}",
        options=options,
    )


def make_agent(config: Config, *, changing: bool) -> tuple[bandit.Agent, Any]:
    """The method as an agent.

    Args:
      config: The settings, with the method and what it sets.
      changing: Whether the systems change.

    Returns:
      The agent and its options.
    """
    if config.method == "vanilla_ucb":
        return rivals.vanilla_ucb(config.num_nodes, windowed=changing), None
    if config.method == "linsem_ts":
        return rivals.linsem_ts(config.num_nodes), None
    if config.method in CONTINUOUS:
        return continuous.agent(descent_rule(config)), jnp.array(changing)
    shape = csl.Shape(config.num_nodes, config.horizon, config.n_max, config.lanes)
    return csl.agent(shape), csl.Options(
        log_weight=jnp.array(float(config.mi_weight)),
        optimism=jnp.array(float(config.explore == "ucb")),
        theorem=jnp.array(config.width == "theorem"),
        look=jnp.array(changing and config.change_mode != "none"),
        restart=jnp.array(config.change_mode == "global"),
    )


def descent_rule(config: Config) -> continuous.Rule:
    """The settings that the continuous learners look at.

    Args:
      config: The settings, with the method.

    Returns:
      The rule.
    """
    return continuous.Rule(
        nodes=config.num_nodes,
        objective=CONTINUOUS[config.method],
        samples=config.continuous_samples,
        steps=config.continuous_steps,
    )


def measure_graphs(
    config: Config,
    phases: systems.System,
    keys: jax.Array,
    metrics: dict[str, np.ndarray],
    arrays: dict[str, np.ndarray],
) -> None:
    """Adds the errors of the method's graphs against samples, and how many samples were enough.

    Args:
      config: The settings, with the method.
      phases: Systems (B, P, ...).
      keys: One key an instance (B,).
      metrics: Gets one number an instance.
      arrays: Gets the errors (B, sizes).
    """

    def phase(number: int) -> systems.System:
        return jax.tree.map(lambda leaf: leaf[:, number], phases)

    def fresh(number: int) -> jax.Array:
        return jax.vmap(jax.random.fold_in, (0, None))(keys, number)

    found = {"": identify(config, phase(0), fresh(2))}
    if config.nonstationary and config.method == "csl_ucb":
        _, options = make_agent(config, changing=True)
        renewed = renewal.by_columns(
            config.sample_sizes,
            phases,
            fresh(3),
            change=config.change_times[0],
            n_max=config.n_max,
            options=options,
            lanes=config.lanes,
        )
        found |= {"_changing": renewed.errors, "_told": renewed.told}
        arrays["declared_changing"] = renewed.declared
    elif config.nonstationary:
        # Told of the change, the others start anew.
        found["_changing"] = identify(config, phase(1), fresh(3))
    for suffix, errors in found.items():
        arrays |= {f"errors_{name}{suffix}": value for name, value in errors._asdict().items()}
        if suffix != "_told":
            reached = claims.identified(arrays, suffix)
            until, _ = identification.samples_until(reached, config.sample_sizes)
            metrics[f"samples_until_identified{suffix}"] = until


def identify(config: Config, system: systems.System, keys: jax.Array) -> identification.Errors:
    """Errors of the method's graphs against the number of samples.

    Args:
      config: The settings, with the method.
      system: Systems (B, ...).
      keys: One key an instance (B,).

    Returns:
      The errors.
    """
    if config.method in CONTINUOUS:
        rule = descent_rule(config)
        return identification.by_descent(config.sample_sizes, system, keys, rule=rule)
    return identification.by_columns(
        config.sample_sizes, system, keys, log_weight=config.mi_weight, lanes=config.lanes
    )


def summarise(
    played: bandit.Play,
    metrics: dict[str, np.ndarray],
    arrays: dict[str, np.ndarray],
    suffix: str,
) -> None:
    """Adds a play's numbers by instance, and its curves over bins.

    Args:
      played: What happened.
      metrics: Gets one number an instance.
      arrays: Gets the curves (B, bins).
      suffix: Of the names.
    """
    batch, horizon = played.regret.shape
    bins = (batch, horizon // bandit.BIN, bandit.BIN)
    regret = np.cumsum(played.regret.reshape(bins).sum(axis=2), axis=1)
    optimal = played.optimal.reshape(bins).mean(axis=2)
    metrics[f"regret{suffix}"] = regret[:, -1]
    metrics[f"reward{suffix}"] = played.reward.mean(axis=1)
    metrics[f"optimal_share{suffix}"] = optimal[:, -1]
    if "exploring" in played.trace:
        metrics[f"exploring{suffix}"] = played.trace["exploring"].sum(axis=1)
    arrays |= {f"regret{suffix}": regret, f"optimal{suffix}": optimal}


EXPERIMENT = app.Experiment(
    slug="causal_bandits",
    title="Asymmetric Graph Error Control with Low Complexity in Causal Bandits",
    citation="Chen Peng, Di Zhang, Urbashi Mitra. IEEE TSP 2025. arXiv 2408.11240",
    about="""
A linear system with unknown weights is intervened on, node by node, to make its last node large.
Learning each of the 2^N actions is hopeless; learning the 2N columns of two weight matrices is not.
The two errors of a learnt graph are not alike: a superfluous edge gets a weight near 0, a missing
one biases the others for ever. So edges are removed one at a time, and only until the graph has no
cycle. The binary plays the method, its parts and its rivals on random systems, with and without
changes of the graph, and measures how many samples the graphs take.""",
    config=Config,
    presets=PRESETS,
    preset_docs={
        "smoke": "seconds; shows that everything runs",
        "quick": "minutes on 2 cores: 6 nodes, 1000 steps, all methods, 20 instances, two settings",
        "paper": "10 nodes, 1500 steps, a hundred instances: for an accelerator",
    },
    methods=METHODS,
    labels={
        "reward": "mean reward",
        "optimal_share": "optimal, last 100",
        "exploring": "exploring steps",
        "regret_changing": "regret, changing",
        "reward_changing": "mean reward, changing",
        "optimal_share_changing": "optimal, last 100, changing",
        "exploring_changing": "exploring steps, changing",
        "samples_until_identified": "samples until no edge is missing",
        "samples_until_identified_changing": "new samples until no edge is missing, changing",
    },
    measure=measure,
    claims=claims.claims,
    figures=figures.draw,
    examples=(
        "./run causal_bandits --method=csl_ucb --num_seeds=10",
        "./run causal_bandits --method=csl_ucb --mi_weight=0.5 --n_max=50 --nononstationary",
        "./run causal_bandits --method=csl_ucb --nononstationary --data_dir=DIR --num_nodes=5",
        "./run causal_bandits --preset=paper --lanes=100",
    ),
)

if __name__ == "__main__":
    app.main(EXPERIMENT)

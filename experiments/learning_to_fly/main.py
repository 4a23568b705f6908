"""Learning to fly: a policy for a quadrotor from one simulated vehicle, and a fast simulator.

COMMAND   ./run learning_to_fly             (quick preset: TD3, symmetric TD3, bptt, three seeds)
RESULT    see README.md, made from results/results.json
"""

from typing import Any

import jax
import numpy as np

from experiments.common import app, loop, metrics
from experiments.learning_to_fly import (
    bptt,
    claims,
    evaluation,
    export,
    figures,
    flight,
    settings,
    simulators,
    td3,
)
from experiments.learning_to_fly.settings import BPTT, METHODS, PRESET_DOCS, PRESETS, Config

# Metrics of an evaluation that become curves.
CURVES = ("length", "return", "terminated", "settled")
LOST = 100.0


def measure(config: Config, run: app.Run) -> app.Outcome:
    """Trains one method for all seeds, judges the policies and exports the first.

    Args:
      config: The settings, with the method.
      run: The run.

    Returns:
      Metrics by seed, the learning curves and the flights of the figures.
    """
    config = settings.resolved(config)
    task = flight.Task(
        config.history_len,
        config.rotor_delay,
        config.disturbance,
        config.observation_noise,
        config.simulator,
    )
    learner: Any = (bptt if config.algo == BPTT else td3).Learner(config, task)
    name = f"train_{config.method}"
    trained = fit(config, run, learner, name)
    state = trained.state
    actors = state.actor if config.algo == BPTT else state.networks.actor
    found, arrays = judge(config, learner, actors, run)
    per_step = steps_of(config, learner)
    for curve in CURVES:
        at, values = metrics.curve(run.folder(name) / "metrics.jsonl", f"eval_{curve}")
        arrays[f"curve_{curve}"] = values
        arrays["curve_steps"] = at * per_step
    found["seconds"] = np.full(config.num_seeds, trained.seconds / config.num_seeds)
    first = jax.tree.map(lambda x: np.asarray(x[0]), actors)
    export.write(first, run.folder("policies"), name=f"{config.method}_seed{config.seed}")
    return app.Outcome(found, arrays)


def steps_of(config: Any, learner: Any) -> int:
    """Environment steps of a step of the training loop.

    Args:
      config: The settings.
      learner: Its learner.

    Returns:
      The number.
    """
    if config.algo == BPTT:
        return int(config.bptt_envs * config.bptt_horizon)
    return int(learner.schedule.block)


def fit(config: Any, run: app.Run, learner: Any, name: str) -> loop.Trained:
    """Trains all seeds.

    Args:
      config: The settings.
      run: The run.
      learner: TD3 or bptt.
      name: Folder of the training in the run.

    Returns:
      The trained state.
    """
    judged = evaluation.task_of(config.history_len)

    def evaluate(state: Any, key: jax.Array) -> dict[str, jax.Array]:
        params = state.actor if config.algo == BPTT else state.networks.actor
        flown = evaluation.fly(learner.actor, params, judged, key, episodes=config.eval_episodes)
        return {f"eval_{k}": v for k, v in evaluation.summary(flown).items()}

    if config.algo == BPTT:
        every, total, shown = config.bptt_eval_every, config.bptt_updates, "value"
    else:
        plan = learner.schedule
        every, total, shown = max(1, config.eval_every // plan.block), plan.blocks, "q"
    return loop.fit(
        learner.step,
        learner.init,
        num_steps=total,
        seed_keys=run.seed_keys,
        folder=run.folder(name),
        description=config.method,
        log_every=config.log_every,
        checkpoint_every=config.checkpoint_every,
        # The step's number, by which the schedule goes.
        batches=loop.Resident((), lambda data, key, step: step),
        evaluation=loop.Evaluation(evaluate, every),
        devices=run.devices,
        shown=shown,
    )


def judge(
    config: Any, learner: Any, actors: Any, run: app.Run
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Flies the trained policies: hovering, and along the figure-eight.

    Args:
      config: The settings.
      learner: Whose policies.
      actors: Their parameters, with a leading axis of seeds.
      run: The run.

    Returns:
      Metrics by seed, and the paths of the figures.
    """
    task = evaluation.task_of(config.history_len)
    keys = jax.vmap(lambda key: jax.random.fold_in(key, 2**31))(run.seed_keys)

    @jax.jit
    @jax.vmap
    def hover(params: Any, key: jax.Array) -> evaluation.Episodes:
        return evaluation.fly(learner.actor, params, task, key, episodes=config.eval_episodes)

    episodes = hover(actors, keys)
    found = {k: np.asarray(v) for k, v in jax.vmap(evaluation.summary)(episodes).items()}
    arrays: dict[str, np.ndarray] = {"worst": np.asarray(episodes.worst)}
    arrays["hovering"] = np.asarray(
        jax.jit(lambda p, k: evaluation.paths(learner.actor, p, task, k))(
            jax.tree.map(lambda x: x[0], actors), keys[0]
        )
    )
    for period in evaluation.PERIODS if config.tracking_laps else ():

        @jax.jit
        @jax.vmap
        def eight(params: Any, key: jax.Array, period: float = period) -> jax.Array:
            return evaluation.track(
                learner.actor, params, task, key, period=period, laps=config.tracking_laps
            )

        flown = np.asarray(eight(actors, keys))
        lap = flown[:, -round(period / flight.DT) :]
        # A vehicle that is lost counts as being so far away, also where it is no number any more.
        error = np.clip(np.nan_to_num(lap[..., :3] - lap[..., 3:], nan=LOST), -LOST, LOST)
        found[f"rmse_{period:g}s"] = rmse(error)
        arrays[f"rmse_{period:g}s_xy"] = rmse(error[..., :2])
        arrays[f"eight_{period:g}"] = flown[0]
    return found, arrays


def rmse(error: np.ndarray) -> np.ndarray:
    """Root of the mean squared distance.

    Args:
      error: Differences (..., steps, dimensions).

    Returns:
      One number for each path.
    """
    return np.sqrt(np.mean(np.sum(np.square(error), axis=-1), axis=-1))


def xla_flags(config: Config) -> tuple[str, ...]:
    """What the compiler is told.

    Args:
      config: The settings.

    Returns:
      Options.
    """
    if config.simulator == simulators.MJX:
        return ()  # The first of those below ends the compilation of MuJoCo's program with a crash.
    # Without the first the compiler computes a step of the simulator once for each component of the
    # state; by the second the loop that collects is one function, and not hundreds of small ones.
    return (
        "--xla_backend_extra_options=xla_cpu_use_multi_output_fusion,"
        "xla_cpu_small_while_loop_byte_threshold=300000",
    )


EXPERIMENT = app.Experiment(
    slug="learning_to_fly",
    title="Learning to Fly in Seconds",
    citation="Jonas Eschmann, Dario Albani, Giuseppe Loianno. RA-L 2024. arXiv 2311.13081",
    about="""
A small network flies a quadrotor end to end: it sees a noisy state and its own last actions and
commands four rotor speeds a hundred times a second. It is trained in simulation in seconds. In
training the critic sees what the vehicle cannot measure: exact states, the speeds of the rotors and
the disturbance; in flight only the actor remains. The binary trains it as the paper does, and with
either critic, leaves out one ingredient at a time, compares with the gradient through the
simulator (bptt), flies figure-eights, writes the policy as a C header, and times the simulator.""",
    config=Config,
    presets=PRESETS,
    preset_docs=PRESET_DOCS,
    methods=METHODS,
    labels={
        "length": "steps of 500",
        "return": "return, target weights",
        "rmse_15s": "RMSE, eight in 15 s, m",
        "rmse_5.5s": "in 5.5 s",
        "rmse_3.5s": "in 3.5 s",
        "seconds": "seconds a seed",
    },
    measure=measure,
    claims=claims.claims,
    figures=figures.draw,
    examples=(
        "./run learning_to_fly --preset=paper",
        "./run learning_to_fly --method=bptt --num_seeds=1",
        "./run learning_to_fly --preset=ablations",
        "./run learning_to_fly --method=custom --history_len=8 --target_noise=0.1",
        "./run learning_to_fly --preset=vec --num_envs=1024 --updates_per_env_step=0.01",
    ),
    xla_flags=xla_flags,
    cpu_threads=1,
)

if __name__ == "__main__":
    app.main(EXPERIMENT)

"""Four very different users of the frame, each as small as it can be.

A contrastive trainer with a momentum encoder and a queue; a learner whose update is no gradient;
reinforcement learning whose simulator lives inside the scan; a closed form without training. None
needs more than the public functions of experiments.common.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.common import app, checkpoints, config, loop, metrics, report, seeds


def fit(tmp_path, step, init, **options):
    settings = {"num_steps": 40, "log_every": 10, "checkpoint_every": 20} | options
    return loop.fit(
        step, init, seed_keys=seeds.keys(0, 2), folder=tmp_path, description="user", **settings
    ).state


def test_contrastive_trainer_with_momentum_encoder_and_queue(tmp_path):
    data = np.random.default_rng(0).normal(size=(32, 6)).astype(np.float32)
    optimizer = optax.sgd(0.1)

    def init(key):
        query = jax.random.normal(key, (6, 4))
        queue = jax.random.normal(jax.random.fold_in(key, 1), (16, 4))
        return {
            "query": query,
            "momentum": query,
            "queue": queue / jnp.linalg.norm(queue, axis=1, keepdims=True),
            "pointer": jnp.int32(0),
            "optimizer": optimizer.init(query),
        }

    def unit(x):
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

    def step(state, batch, key):
        views = batch + 0.1 * jax.random.normal(key, (2, *batch.shape))
        keys = unit(views[1] @ state["momentum"])

        def loss_of(weights):
            q = unit(views[0] @ weights)
            logits = jnp.concatenate(
                [jnp.sum(q * keys, 1, keepdims=True), q @ state["queue"].T], axis=1
            )
            return -jnp.mean(jax.nn.log_softmax(logits / 0.2)[:, 0])

        loss, gradient = jax.value_and_grad(loss_of)(state["query"])
        updates, opt = optimizer.update(gradient, state["optimizer"])
        query = optax.apply_updates(state["query"], updates)
        return {
            "query": query,
            "momentum": optax.incremental_update(query, state["momentum"], 0.01),
            "queue": jax.lax.dynamic_update_slice(state["queue"], keys, (state["pointer"], 0)),
            "pointer": (state["pointer"] + len(keys)) % 16,
            "optimizer": opt,
        }, {"loss": loss}

    def sample(data, key, at):
        return data[jax.random.choice(key, 32, (8,), replace=False)]

    state = fit(tmp_path, step, init, batches=loop.Resident(data, sample))
    assert np.all(state["pointer"] == 0)
    np.testing.assert_allclose(np.linalg.norm(state["queue"], axis=-1), 1, rtol=1e-5)
    # The momentum encoder follows, slowly.
    start = np.stack([np.asarray(init(key)["query"]) for key in seeds.keys(0, 2)])
    moved = [np.linalg.norm(state[name] - start) for name in ("query", "momentum")]
    assert 0 < moved[1] < 0.5 * moved[0]


def test_a_local_rule_that_is_no_gradient(tmp_path):
    # Oja's rule finds the first principal component; no objective is differentiated.
    rng = np.random.default_rng(1)
    data = rng.normal(size=(200, 5)).astype(np.float32) * np.array([3, 1, 1, 1, 1], np.float32)

    def step(w, x, key):
        y = x @ w
        return w + 0.02 * jnp.mean(y[:, None] * (x - y[:, None] * w), axis=0), {
            "length": jnp.linalg.norm(w)
        }

    def sample(data, key, at):
        return data[jax.random.randint(key, (20,), 0, 200)]

    w = fit(
        tmp_path,
        step,
        lambda key: jax.random.normal(key, (5,)),
        num_steps=400,
        batches=loop.Resident(data, sample),
        shown="length",
    )
    assert np.all(np.abs(w[:, 0]) > 0.95)


def test_reinforcement_learning_inside_the_scan(tmp_path):
    # A two-armed bandit with a replay memory in the state, and its learning curve.
    def init(key):
        return {"value": jnp.zeros(2), "memory": jnp.zeros((40, 2)), "count": jnp.int32(0)}

    def step(state, batch, key):
        assert batch is None
        explore, arm_key, noise = jax.random.split(key, 3)
        greedy = jnp.argmax(state["value"])
        arm = jnp.where(
            jax.random.uniform(explore) < 0.3, jax.random.randint(arm_key, (), 0, 2), greedy
        )
        reward = jnp.array([0.2, 0.8])[arm] + 0.1 * jax.random.normal(noise)
        memory = state["memory"].at[state["count"]].set(jnp.stack([arm * 1.0, reward]))
        value = state["value"].at[arm].add(0.3 * (reward - state["value"][arm]))
        count = state["count"] + 1
        return {"value": value, "memory": memory, "count": count}, {"reward": reward}

    def measure(state, key):
        return {"best_arm": jnp.argmax(state["value"]) * 1.0}

    state = fit(tmp_path, step, init, evaluation=loop.Evaluation(measure, every=10), shown="reward")
    assert np.all(state["count"] == 40)
    steps, best = metrics.curve(tmp_path / "metrics.jsonl", "best_arm")
    assert list(steps) == [0, 10, 20, 30, 40]
    assert np.all(best[-1] == 1)
    stored = checkpoints.read_values(tmp_path / "checkpoints")
    np.testing.assert_array_equal(stored["memory"], state["memory"])


def test_a_closed_form_has_no_loop_and_no_flags_of_one(tmp_path, capsys):
    def measure(settings, run):
        values = jax.vmap(lambda key: jax.random.normal(key, (1000,)).mean())(run.seed_keys)
        return app.Outcome({"mean": np.asarray(values)})

    experiment = app.Experiment(
        slug="closed",
        title="A closed form",
        citation="Nobody",
        about="The mean of normal numbers.",
        config=config.Common,
        presets={"quick": {"num_seeds": 4}},
        preset_docs={"quick": "at once"},
        measure=measure,
        claims=lambda settings, outcomes: [
            report.claim("near zero", outcomes["result"].metrics["mean"], "<", 0.1)
        ],
        figures=lambda settings, outcomes, workdir, folder: None,
    )
    assert app.run(experiment, ["closed", f"--workdir={tmp_path}"]) == 0
    assert sorted(p.name for p in tmp_path.iterdir() if p.suffix == ".json") == [
        "config.json",
        "results.json",
        "seconds.json",
    ]
    assert not (tmp_path / "checkpoints").exists()
    capsys.readouterr()
    assert app.run(experiment, ["closed", "--help"]) == 0
    text = capsys.readouterr().out
    assert "--checkpoint_every" not in text
    assert "--method" not in text
    assert "--data_dir" not in text

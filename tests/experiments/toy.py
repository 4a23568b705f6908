"""A small binary that uses every part of the frame: `python -m tests.experiments.toy`."""

import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.common import app, config, loop, plots, report
from experiments.common.errors import UserError


@dataclasses.dataclass(frozen=True)
class Config(config.Compared, config.Training):
    """Settings of the toy."""

    method: str = config.field("sgd", "Optimiser.", choices=("sgd", "adam"))
    steps: int = config.field(60, "Training steps.", minimum=1)
    learning_rate: float = config.field(0.05, "Step size.", minimum=0, maximum=1)
    widths: tuple[int, ...] = config.field((4, 3), "Layer widths.", minimum=1)
    batch: int = config.field(8, "Batch size.", minimum=1)
    streamed: bool = config.field(False, "Make batches on the host.")
    poison: int = config.field(-1, "Step whose batch holds a NaN.", minimum=-1)
    ballast: int = config.field(1, "Numbers that only make checkpoints larger.", minimum=1)

    def check(self) -> None:
        if self.batch > 64:
            raise UserError(f"--batch={self.batch}: there are 64 examples")


DATA = np.random.default_rng(0).normal(size=(64, 5)).astype(np.float32)


def with_devices(count):
    """The environment of a process that sees so many CPU devices."""
    flags = os.environ.get("XLA_FLAGS", "")
    count_flag = f"--xla_force_host_platform_device_count={count}"
    return os.environ | {"XLA_FLAGS": f"{flags} {count_flag}"}


def make(config):
    optimizer = optax.adam(config.learning_rate) if config.method == "adam" else optax.sgd(0.1)

    def init(key):
        sizes = (5, *config.widths, 1)
        keys = jax.random.split(key, len(sizes))
        params = [
            jax.random.normal(k, (a, b)) / a**0.5
            for k, a, b in zip(keys, sizes[:-1], sizes[1:], strict=False)
        ]
        ballast = jax.random.normal(keys[-1], (config.ballast,))
        # Twelve entries: their order as numbers is not their order as text.
        many = tuple(jnp.full((i + 1,), i) for i in range(12))
        return {
            "params": params,
            "optimizer": optimizer.init(params),
            "ballast": ballast,
            "key": key,
            "many": many,
        }

    def predict(params, x):
        for layer in params[:-1]:
            x = jnp.tanh(x @ layer)
        return (x @ params[-1])[:, 0]

    def step(state, batch, key):
        noise = 0.01 * jax.random.normal(key, (5,))

        def objective(params):
            return jnp.mean((predict(params, batch + noise) - batch[:, 0]) ** 2)

        loss, gradient = jax.value_and_grad(objective)(state["params"])
        updates, optimizer = optimizer_update(gradient, state)
        params = optax.apply_updates(state["params"], updates)
        return state | {"params": params, "optimizer": optimizer}, {"loss": loss}

    def optimizer_update(gradient, state):
        return optimizer.update(gradient, state["optimizer"])

    def sample(data, key, at):
        chosen = data[jax.random.randint(key, (config.batch,), 0, len(data))]
        return jnp.where(at == config.poison, jnp.nan, chosen)

    def fetch(at):
        rows = np.random.default_rng(at).integers(0, len(DATA), config.batch)
        return np.where(at == config.poison, np.float32(np.nan), DATA[rows])

    batches = loop.Streamed(fetch) if config.streamed else loop.Resident(DATA, sample)
    return init, step, batches, predict


def measure(config, run):
    init, step, batches, predict = make(config)

    def test_loss(state, key):
        del key
        return {"test_loss": jnp.mean((predict(state["params"], DATA) - DATA[:, 0]) ** 2)}

    trained = loop.fit(
        step,
        init,
        num_steps=config.steps,
        seed_keys=run.seed_keys,
        folder=run.folder(f"train_{config.method}"),
        description=config.method,
        log_every=config.log_every,
        checkpoint_every=config.checkpoint_every,
        batches=batches,
        evaluation=loop.Evaluation(test_loss, every=20),
        devices=run.devices,
    )
    final = jax.vmap(lambda s: test_loss(s, None)["test_loss"])(trained.state)
    weights = np.concatenate([np.ravel(w) for w in trained.state["params"]])
    return app.Outcome({"test_loss": np.asarray(final)}, {"weights": weights})


def claims(config, outcomes):
    return [report.claim("learns", outcomes[m].metrics["test_loss"], "<", 1.0) for m in outcomes]


def figures(config, outcomes, workdir, folder):
    figure, axes = plots.new(1)
    axes[0, 0].bar(list(outcomes), [o.metrics["test_loss"].mean() for o in outcomes.values()])
    plots.save(figure, folder / "toy.png")


EXPERIMENT = app.Experiment(
    slug="toy",
    title="A toy",
    citation="Nobody. Nowhere.",
    about="Learns the first of five numbers.",
    config=Config,
    presets={
        "smoke": {"log_every": 10, "checkpoint_every": 20},
        "quick": {"compare": True, "log_every": 10, "checkpoint_every": 20},
    },
    preset_docs={"smoke": "fast", "quick": "both methods"},
    methods={"sgd": "plain", "adam": "adaptive"},
    labels={"test_loss": "loss on all examples"},
    measure=measure,
    claims=claims,
    figures=figures,
    examples=("./run toy --method=adam",),
)

if __name__ == "__main__":
    app.main(EXPERIMENT)

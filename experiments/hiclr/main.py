"""HiCLR: strong views of a skeleton learn from weak ones, never the reverse.

COMMAND   ./run hiclr                       (quick preset, all methods, three seeds)
RESULT    see README.md, made from results/results.json
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import app, loop
from experiments.hiclr import claims, figures, finetuning, probes, sources, training
from experiments.hiclr.settings import METHODS, PRESETS, THREE, Config

_STREAMS = ("joint", "motion", "bone")
# Of the logits of joint, motion and bone; the better of the two is kept, as the authors do.
ENSEMBLE_WEIGHTS = ((0.5, 0.5, 0.5), (0.6, 0.4, 0.6))


def measure(config: Config, run: app.Run) -> app.Outcome:
    """Pre-trains one method and measures what its features are worth.

    Args:
      config: The settings, with the method.
      run: The run.

    Returns:
      Accuracies by seed, and embeddings of a batch for the claims.
    """
    source = sources.open_source(config)
    streams = _STREAMS if config.stream == THREE else (config.stream,)
    metrics: dict[str, np.ndarray] = {}
    arrays: dict[str, np.ndarray] = {}
    logits: dict[str, list[jax.Array]] = {}
    for stream in streams:
        suffix = f"_{stream}" if config.stream == THREE else ""
        learner = training.Learner(config, source, stream)
        trained = pretrain(config, run, learner, source, stream)
        found, metrics[f"knn{suffix}"] = probe(config, learner, trained.state, source, run)
        for name in config.protocols:
            if name != "linear":
                found[name] = finetune(config, run, trained.state, source, stream, name)
        for name, values in found.items():
            metrics[name + suffix] = np.asarray(probes.accuracy(values, source.test.y))
            logits.setdefault(name, []).append(values)
        if stream == streams[0] and training.RECIPES[config.method][0] == 3:
            arrays = witness(learner, trained.state, source, run)
    if config.stream == THREE:
        for name, parts in logits.items():
            metrics[f"{name}_ensemble"] = ensemble(jnp.stack(parts), source.test.y)
    return app.Outcome(metrics, arrays)


def pretrain(
    config: Any, run: app.Run, learner: training.Learner, source: sources.Source, stream: str
) -> loop.Trained:
    """Pre-trains all seeds.

    Args:
      config: The settings.
      run: The run.
      learner: The networks and their update.
      source: The data.
      stream: What the encoder sees.

    Returns:
      The trained state.
    """
    evaluation = None
    if config.probe_every:

        def curves(state: training.State, key: jax.Array) -> dict[str, jax.Array]:
            train, test = (learner.features(state, c.x) for c in (source.train, source.test))
            logits = probes.logistic_logits(train, source.train.y, test, source.num_classes)
            return {"probe": probes.accuracy(logits, source.test.y)}

        evaluation = loop.Evaluation(curves, config.probe_every)
    return loop.fit(
        learner.step,
        learner.init,
        num_steps=training.num_steps(config, source),
        seed_keys=run.seed_keys,
        folder=run.folder(f"train_{config.method}_{stream}"),
        description=f"{config.method}, {stream}",
        log_every=config.log_every,
        checkpoint_every=config.checkpoint_every,
        batches=source.batches,
        evaluation=evaluation,
        devices=run.devices,
        # Side by side, three seeds take 1.6 times as long as one after the other.
        map_seeds=True,
    )


def probe(
    config: Any,
    learner: training.Learner,
    state: training.State,
    source: sources.Source,
    run: app.Run,
) -> tuple[dict[str, jax.Array], np.ndarray]:
    """What frozen features tell.

    Args:
      config: The settings.
      learner: The networks.
      state: Their trained state, with a leading axis of seeds.
      source: The data.
      run: The run.

    Returns:
      Test logits (num_seeds, clips, classes) of the logistic probe and, if asked for, of the
      linear protocol; and the accuracy of 5-NN (num_seeds,).
    """
    train, test = source.train, source.test
    features = over_seeds(learner.features)
    seen, unseen = features(state, train.x), features(state, test.x)

    @jax.jit
    @jax.vmap
    def judge(seen: jax.Array, unseen: jax.Array, key: jax.Array) -> Any:
        classes = source.num_classes
        logits = {"probe": probes.logistic_logits(seen, train.y, unseen, classes)}
        if "linear" in config.protocols:
            logits["linear"] = probes.linear_protocol_logits(
                key,
                seen,
                train.y,
                unseen,
                classes,
                epochs=config.linear_epochs,
                rate=config.linear_rate,
            )
        return logits, probes.nearest_accuracy(seen, train.y, unseen, test.y, classes)

    logits, nearest = judge(seen, unseen, run.seed_keys)
    return logits, np.asarray(nearest)


def finetune(
    config: Any,
    run: app.Run,
    pretrained: training.State,
    source: sources.Source,
    stream: str,
    protocol: str,
) -> jax.Array:
    """Trains encoder and classifier on labels.

    Args:
      config: The settings.
      run: The run.
      pretrained: State after pre-training, with a leading axis of seeds.
      source: The data.
      stream: What the encoder sees.
      protocol: Which share of the labels.

    Returns:
      Test logits (num_seeds, clips, classes).
    """
    tuner = finetuning.Finetuner(config, source, stream, finetuning.FRACTIONS[protocol])
    tuned = loop.fit(
        tuner.step,
        tuner.init,
        num_steps=tuner.num_steps,
        seed_keys=run.seed_keys,
        folder=run.folder(f"{protocol}_{config.method}_{stream}"),
        description=f"{config.method}, {stream}, {protocol}",
        log_every=config.log_every,
        checkpoint_every=config.checkpoint_every,
        batches=tuner.batches,
        devices=run.devices,
        map_seeds=True,
        start=pretrained,
    )
    return over_seeds(tuner.logits)(tuned.state, source.test.x)


def over_seeds(function: Callable[[Any, jax.Array], jax.Array]) -> Callable[..., jax.Array]:
    """A compiled function of one seed's state and of clips, for all seeds one after the other.

    Args:
      function: Of a state and clips.

    Returns:
      The function of states with a leading axis of seeds, and clips.
    """
    return jax.jit(lambda states, x: jax.lax.map(lambda state: function(state, x), states))


def witness(
    learner: training.Learner, state: training.State, source: sources.Source, run: app.Run
) -> dict[str, np.ndarray]:
    """Embeddings of the views of one batch, on which the claims judge the loss.

    Args:
      learner: The networks.
      state: Their trained state, with a leading axis of seeds.
      source: The data.
      run: The run.

    Returns:
      `training.Witness` by name, with a leading axis of seeds.
    """

    def one(of_seed: tuple[training.State, jax.Array]) -> training.Witness:
        state, key = of_seed
        batch = source.batches.sample(source.train.x, key, jnp.int32(0))
        return learner.witness(state, batch.x, key)

    found = loop.once(lambda *of_seeds: jax.lax.map(one, of_seeds))(state, run.seed_keys)
    return {name: np.asarray(values) for name, values in found._asdict().items()}


def ensemble(logits: jax.Array, expected: jax.Array) -> np.ndarray:
    """Accuracy of the weighted sum of the streams, by the weights that are better on average.

    Args:
      logits: Of joint, motion and bone (3, num_seeds, clips, classes).
      expected: Classes (clips,).

    Returns:
      Shape (num_seeds,).
    """
    found = [
        np.asarray(probes.accuracy(jnp.tensordot(jnp.asarray(weights), logits, 1), expected))
        for weights in ENSEMBLE_WEIGHTS
    ]
    return max(found, key=np.mean)


EXPERIMENT = app.Experiment(
    slug="hiclr",
    title="Hierarchical Consistent Contrastive Learning for Skeleton-Based Action Recognition "
    "with Growing Augmentations",
    citation="Jiahang Zhang, Lilang Lin, Jiaying Liu. AAAI 2023. arXiv 2211.13466",
    about="""
Contrastive learning lives on augmentations, and strong ones destroy what they should preserve.
HiCLR grows them step by step, contrasts the weakest view alone, and lets every stronger view learn
from the next weaker one what it should see in the queue: the weak view is the target and never
moves. The binary pre-trains encoders of joint sequences without labels by the method, its parts and
its rivals, and measures what their features tell about the action.""",
    config=Config,
    presets=PRESETS,
    preset_docs={
        "smoke": "seconds; shows that everything runs",
        "quick": "minutes on 2 cores: all methods, three seeds, on procedural actions",
        "paper": "the paper's encoder on NTU files in --data_dir (default ./data), 300 epochs",
    },
    methods=METHODS,
    labels={
        "probe": "logistic probe",
        "knn": "5-NN",
        "linear": "linear protocol",
        "finetune": "fine-tuned",
        "semi_1": "1% of labels",
        "semi_10": "10% of labels",
    },
    measure=measure,
    claims=claims.claims,
    figures=figures.draw,
    examples=(
        "./run hiclr --method=hiclr --num_seeds=1",
        "./run hiclr --dataset=msr_action3d --data_dir=DIR --steps=150",
        "./run hiclr --method=hiclr --stream=three --protocols=linear,finetune",
        "./run hiclr --preset=paper --data_dir=DIR",
    ),
    # Batch norm's sums and what they are sums of in one pass: an eighth of the step's time.
    xla_flags=("--xla_backend_extra_options=xla_cpu_use_multi_output_fusion",),
)

if __name__ == "__main__":
    app.main(EXPERIMENT)

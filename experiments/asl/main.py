"""ASL: is this picture an edited copy of that one, and not the other way round?

COMMAND   ./run asl                         (quick preset, all methods, three seeds)
RESULT    see README.md, made from results/results.json
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from experiments.asl import claims, figures, scoring, sources, training
from experiments.asl.settings import METHODS, PRESETS, Config
from experiments.common import app, loop, terminal

# Method -> (which training it uses, which rule scores its pairs).
_PARTS = {
    "metric": ("metric", "cosine"),
    "asl": ("asl", "norm"),
    "asl_softscore": ("asl", "soft"),
    "asl_reversed": ("asl_reversed", "norm"),
    "norm_regress": ("norm_regress", "scale"),
    "random_filter": ("asl", "random"),
}


def measure(config: Config, run: app.Run) -> app.Outcome:
    """Trains (unless a method before trained the same) and scores one method.

    Args:
      config: The settings, with the method.
      run: The run.

    Returns:
      Metrics by seed, and the arrays of the figures.
    """
    variant, rule = _PARTS[config.method]
    source = sources.open_source(config, config.w_nr, run.seed_keys)
    learner = training.Learner(config, variant, source.num_classes)
    trained = fit(learner, source, config, run.seed_keys, run, f"train_{variant}")
    queries = describe(learner, trained.state, source.queries, config)
    references = describe(learner, trained.state, source.references, config)
    centres: list[np.ndarray] | None = None
    if config.stretch:
        originals = describe(learner, trained.state, source.training, config)
        centres = [np.asarray(np.mean(seed.descriptor, 0, np.float64)) for seed in originals]
    rows: list[dict[str, float]] = []
    arrays: dict[str, np.ndarray] = {}
    for seed, truth in enumerate(source.truths):
        found = scoring.candidates(
            queries[seed],
            references[seed],
            top_k=config.top_k,
            max_results=config.max_results,
            stretch=config.stretch,
            training_centre=centres[seed] if centres else None,
        )
        metrics, curves = scoring.measure(
            queries[seed],
            references[seed],
            found,
            truth,
            rule=rule if config.filter else "cosine",
            threshold=config.ratio_threshold,
            soft_beta=config.soft_beta,
            rng=np.random.default_rng(config.seed + seed),
        )
        rows.append(metrics)
        arrays |= {f"{name}/{seed}": value for name, value in curves.items()}
    return app.Outcome({name: np.array([row[name] for row in rows]) for name in rows[0]}, arrays)


def fit(
    learner: training.Learner,
    source: sources.Source,
    config: Any,
    seed_keys: jax.Array,
    run: app.Run,
    name: str,
) -> loop.Trained:
    """Trains one variant for all seeds; a finished training is only read.

    Args:
      learner: The network and its update.
      source: The data.
      config: The settings.
      seed_keys: One key a seed.
      run: The run.
      name: Folder of the training in the run.

    Returns:
      The trained state.
    """
    return loop.fit(
        learner.step,
        learner.init,
        num_steps=config.steps,
        seed_keys=seed_keys,
        folder=run.folder(name),
        description=name,
        log_every=config.log_every,
        checkpoint_every=config.checkpoint_every,
        batches=source.batches,
        devices=run.devices,
    )


def describe(
    learner: training.Learner, state: training.State, pictures: sources.Pictures, config: Any
) -> list[scoring.Described]:
    """Descriptors and lengths of a set of pictures.

    Args:
      learner: The network.
      state: Its trained state, with a leading axis of seeds.
      pictures: The pictures.
      config: The settings.

    Returns:
      One `Described` a seed.
    """
    norm_feature = training.FEATURE[config.norm_feature]

    def one_seed(state: training.State, images: Sequence[jax.Array]) -> scoring.Described:
        at_input_size, *others = (learner.features(state, training.unit_range(i)) for i in images)
        return scoring.describe(at_input_size, others, norm_feature)

    axis = 1 if pictures.per_seed else 0
    describe_chunk = jax.jit(jax.vmap(one_seed, (0, 0 if pictures.per_seed else None)))
    chunks = []
    with terminal.progress("describing", pictures.total, unit="picture", delay=5) as bar:
        for images in pictures.chunks():
            count = images[0].shape[axis]
            # Few different shapes, because each is compiled.
            padded = [_padded(part, axis, 1 << (count - 1).bit_length()) for part in images]
            found = jax.tree.map(np.asarray, describe_chunk(state, padded))
            chunks.append(jax.tree.map(lambda x, count=count: x[:, :count], found))
            bar.update(count)
    joined = jax.tree.map(lambda *parts: np.concatenate(parts, axis=1), *chunks)
    return [jax.tree.map(lambda x, s=s: x[s], joined) for s in range(len(joined.scale))]


def _padded(images: np.ndarray, axis: int, count: int) -> np.ndarray:
    missing = [(0, count - images.shape[axis] if i == axis else 0) for i in range(images.ndim)]
    return np.pad(images, missing)


EXPERIMENT = app.Experiment(
    slug="asl",
    title="A Benchmark and Asymmetrical-Similarity Learning for Practical Image Copy Detection",
    citation="Wenhao Wang, Yifan Sun, Yi Yang. AAAI 2023. arXiv 2205.12358",
    about="""
"Is an edited copy of" has a direction: a crop is a copy of its picture, the picture is no copy of
its crop. ASL keeps the content in the direction of an embedding and the AMOUNT of content in its
length, so that the ratio of two lengths tells which of two similar pictures can be the copy.
The binary trains copy detectors with and without the norm-ratio loss, and measures retrieval
(micro average precision, recall at 90 % precision) against reversed hard negatives.""",
    config=Config,
    presets=PRESETS,
    preset_docs={
        "smoke": "seconds; shows that everything runs",
        "quick": "minutes on 2 cores: all methods, three seeds, on procedural scenes",
        "paper": "ResNet-50 on DISC21/NDEC in --data_dir (default ./data), 25 x 8000 steps",
    },
    methods=METHODS,
    labels={
        "mu_ap": "muAP",
        "mu_ap_cosine": "muAP, cosine",
        "mu_ap_norm_filter": "muAP, norm filter",
        "recall_at_p90": "R@P90",
        "recall_at_rank1": "R@1",
        "recall_at_rank10": "R@10",
        "reversed_dropped": "reversed negatives dropped",
    },
    measure=measure,
    claims=claims.claims,
    figures=figures.draw,
    examples=(
        "./run asl --method=asl --num_seeds=1",
        "./run asl --dataset=tfds:cifar10 --data_dir=DIR --num_scenes=2000",
        "./run asl --dataset=photos --num_views=32",
        "./run asl --preset=paper --data_dir=DIR",
    ),
)

if __name__ == "__main__":
    app.main(EXPERIMENT)

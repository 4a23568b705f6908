"""Adapters for asymmetrical-similarity learning (arXiv 2205.12358).

Compiled as a whole: one operation at a time would compile dozens of small programs a case.
"""

import jax
import jax.numpy as jnp
import numpy as np

from asym import retrieval, similarity

# The authors divide by the norm as it is, and so must the comparison at tiny ones.
NO_EPS = 1e-300


def _pad_draws(draws: np.ndarray, draws_per_group: np.ndarray) -> np.ndarray:
    """Ragged draws as one row per group, short groups repeating their last pair."""
    ends = np.cumsum(draws_per_group)
    tries = np.arange(draws_per_group.max())
    rows = np.minimum((ends - draws_per_group)[:, None] + tries, ends[:, None] - 1)
    return draws[rows]


def norm_ratio_loss(inputs):
    groups, views = inputs["num_groups"].item(), inputs["num_instances"].item()
    draws = _pad_draws(inputs["draws"], inputs["draws_per_group"])
    hi, lo = jax.jit(similarity.select_scale_pairs)(
        jnp.asarray(draws), jnp.asarray(inputs["scales"])
    )
    first_row = views * np.arange(groups)
    if np.any(hi + first_row != inputs["hi"]) or np.any(lo + first_row != inputs["lo"]):
        raise ValueError("the redraw rule selects other pairs than the recorded ones")

    def loss(features):
        grouped = features.reshape(groups, views, -1)
        return similarity.norm_ratio_loss(grouped, hi=hi, lo=lo, eps=NO_EPS)

    value, gradient = jax.jit(jax.value_and_grad(loss))(jnp.asarray(inputs["features"]))
    return {"loss": value, "grad_features": gradient}


def soft_triplet_loss(inputs):
    features, labels = jnp.asarray(inputs["features"]), jnp.asarray(inputs["labels"])
    value, gradient = jax.jit(jax.value_and_grad(retrieval.soft_batch_hard_triplet))(
        features, labels, inputs["margin"].item()
    )
    positive, negative = jax.jit(retrieval.batch_hard_distances)(features, labels)
    return {"loss": value, "grad_features": gradient, "dist_ap": positive, "dist_an": negative}


def cross_entropy_label_smooth(inputs):
    value, gradient = jax.jit(jax.value_and_grad(retrieval.label_smoothed_cross_entropy))(
        jnp.asarray(inputs["logits"]), jnp.asarray(inputs["labels"]), inputs["epsilon"].item()
    )
    return {"loss": value, "grad_logits": gradient}


def cosface_pairwise_loss(inputs):
    value, gradient = jax.jit(jax.value_and_grad(retrieval.pairwise_cosface))(
        jnp.asarray(inputs["features"]),
        jnp.asarray(inputs["labels"]),
        margin=inputs["m"].item(),
        scale=inputs["s"].item(),
    )
    return {"loss": value, "grad_features": gradient}


def asl_total_loss(inputs):
    groups, views = inputs["scales"].shape
    first_row = views * np.arange(groups)

    def loss(features, logits):
        parts = retrieval.asl_loss(
            features.reshape(groups, views, -1),
            logits.reshape(groups, views, -1),
            jnp.asarray(inputs["labels"]).reshape(groups, views),
            hi=jnp.asarray(inputs["hi"] - first_row),
            lo=jnp.asarray(inputs["lo"] - first_row),
            cross_entropy_weight=inputs["w_ce"].item(),
            triplet_weight=inputs["w_tri"].item(),
            norm_ratio_weight=inputs["w_nr"].item(),
        )
        return parts.total, parts

    gradients, parts = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(
        jnp.asarray(inputs["features"]), jnp.asarray(inputs["logits"])
    )
    return {
        "loss": parts.total,
        "ce": parts.cross_entropy,
        "triplet": parts.triplet,
        "norm_ratio": parts.norm_ratio,
        "grad_features": gradients[0],
        "grad_logits": gradients[1],
    }


def gem_pool(inputs):
    channels_last = jnp.moveaxis(jnp.asarray(inputs["x"]), 1, -1)
    exponent = jnp.asarray(inputs["p"]).reshape(())

    def pool(x, p):
        return retrieval.gem_pool(x, p, inputs["eps"].item())

    @jax.jit
    def pool_and_pull_back(cotangent):
        pooled, pull_back = jax.vjp(pool, channels_last, exponent)
        return pooled, *pull_back(cotangent)

    cotangent = jnp.asarray(inputs["cotangent"])[:, :, 0, 0]
    pooled, grad_x, grad_p = pool_and_pull_back(cotangent)
    return {
        "y": pooled[:, :, None, None],
        "grad_x": jnp.moveaxis(grad_x, -1, 1),
        "grad_p": grad_p[None],
    }


def copy_detection_metrics(inputs):
    candidates = inputs["scores"], inputs["y_true"], inputs["num_positives"].item()
    curve = retrieval.precision_recall_curve(*candidates)
    recall, threshold = retrieval.recall_at_precision(*candidates)
    pairs = {"query": inputs["query"], "reference": inputs["ref"], "ground_truth": inputs["gt"]}
    return {
        "micro_ap": retrieval.micro_average_precision(*candidates),
        "recall_at_p90": recall,
        "threshold_at_p90": threshold,
        "recall_at_rank1": retrieval.recall_at_rank(inputs["scores"], **pairs, rank=1),
        "recall_at_rank10": retrieval.recall_at_rank(inputs["scores"], **pairs, rank=10),
        "precisions": curve.precision,
        "recalls": curve.recall,
    }


def asl_filter(inputs):
    query, reference, truth = inputs["query"], inputs["ref"], inputs["gt"]
    features = {
        "query": jnp.asarray(inputs["feat_q"])[query],
        "reference": jnp.asarray(inputs["feat_r"])[reference],
        "eps": NO_EPS,
    }
    keep = np.asarray(similarity.passes_filter(**features, threshold=inputs["threshold"].item()))
    scores = np.where(keep, inputs["scores"], -np.inf)
    matches = retrieval.match_ground_truth(query=query, reference=reference, ground_truth=truth)
    return {
        "ratio": similarity.norm_ratio(**features),
        "keep": keep,
        "micro_ap": retrieval.micro_average_precision(scores, matches, len(truth)),
        "recall_at_p90": retrieval.recall_at_precision(scores, matches, len(truth))[0],
    }


ADAPTERS = {
    function.__name__: function
    for function in (
        norm_ratio_loss,
        soft_triplet_loss,
        cross_entropy_label_smooth,
        cosface_pairwise_loss,
        asl_total_loss,
        gem_pool,
        copy_detection_metrics,
        asl_filter,
    )
}

TOLERANCES = {
    # Tied groups: a gradient of exactly 0 here, rounding noise of 1e-17 in the recorded one.
    "norm_ratio_loss": (1e-10, 1e-10, 1e-15),
    "cross_entropy_label_smooth": (1e-10, 1e-10),
    "soft_triplet_loss": (1e-10, 1e-10),
    "asl_total_loss": (1e-10, 1e-10),
    "gem_pool": (1e-10, 1e-10),
    "copy_detection_metrics": (1e-12, 1e-12),
    "asl_filter": (1e-12, 1e-12),
}

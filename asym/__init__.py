"""Asymmetric learning in JAX: the mathematics of papers in which two sides are not alike.

A query is not its reference, a strong view is not its weak view, a wrong answer is not a right one
with the sign turned: each paper gathered here gains by treating two sides of a comparison
differently.  Swapping two arguments therefore changes the result, and no caller may swap them by
accident: **roles are keyword-only**.  Two arguments of the same type with different roles are
named by their role,

    asym.similarity.norm_ratio(query=crop, reference=picture)

and never told apart by their position.  This is the signature of the library.

Everything is a pure function of arrays that works under ``jit``, ``vmap`` and ``grad``, takes
float32 and bfloat16 input (accumulating in float32) and stays finite, in value and gradient, on
legal extreme input.  Each room below holds one topic.
"""

from asym import (
    activations,
    causal,
    contrastive,
    control,
    dynamics,
    equilibrium,
    fusion,
    graphs,
    multimodal,
    numerics,
    retrieval,
    similarity,
)

__version__ = "0.1.0"

__all__ = [
    "__version__",
    "activations",
    "causal",
    "contrastive",
    "control",
    "dynamics",
    "equilibrium",
    "fusion",
    "graphs",
    "multimodal",
    "numerics",
    "retrieval",
    "similarity",
]

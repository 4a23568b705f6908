"""What each --method is, as numbers: methods that differ in numbers alone share one program."""

from typing import Any, NamedTuple

import numpy as np

AUDIO, VISUAL = 0, 1
METHODS = {
    "joint": "the fused loss alone",
    "unimodal_a": "audio alone",
    "unimodal_v": "the picture alone",
    "aux_only": "fused and unimodal losses through the shared head, gradients unscaled",
    "uniform": "the same, every encoder's gradient x 1.5: what the released code does",
    "balanced": "the same, with strengths that balance the dependence (q = 1/2)",
    "ogm_ge": "the fused loss; kernels of the better modality slowed down, noise on both",
    "grad_boost_a5": "the fused loss; audio's gradient x 5 (the paper's first observation)",
    "arl": "the paper: unimodal losses, and strengths from dependence and variance",
    "arl_no_aux": "the paper's strengths without the unimodal losses",
}
# Where the strengths k come from. The first two act from the first step on, the others after the
# start: warming up belongs to ARL.
STRENGTHS = ("none", "boost", "analysis", "uniform", "balanced")
OGM_GE = "ogm_ge"


class Recipe(NamedTuple):
    """How a method trains; scalars, or one a seed.

    Attributes:
      auxiliary: 1 where the unimodal losses are added, else 0.
      strength: Index into `STRENGTHS`.
      only: The one modality whose own loss trains, or -1 for the fused one.
    """

    auxiliary: Any = 0
    strength: Any = STRENGTHS.index("none")
    only: Any = -1

    def arrays(self) -> "Recipe":
        """The same as arrays."""
        return Recipe(*map(np.int32, self))


RECIPES = {
    "joint": Recipe(),
    "unimodal_a": Recipe(only=AUDIO),
    "unimodal_v": Recipe(only=VISUAL),
    "aux_only": Recipe(auxiliary=1),
    "uniform": Recipe(auxiliary=1, strength=STRENGTHS.index("uniform")),
    "balanced": Recipe(auxiliary=1, strength=STRENGTHS.index("balanced")),
    # Its modulation is of finished gradients, in `training`.
    OGM_GE: Recipe(),
    "grad_boost_a5": Recipe(strength=STRENGTHS.index("boost")),
    "arl": Recipe(auxiliary=1, strength=STRENGTHS.index("analysis")),
    "arl_no_aux": Recipe(strength=STRENGTHS.index("analysis")),
}


def is_unimodal(method: str) -> bool:
    """Whether a method never fuses.

    Args:
      method: Its name.

    Returns:
      True for `unimodal_a` and `unimodal_v`.
    """
    return RECIPES[method].only >= 0

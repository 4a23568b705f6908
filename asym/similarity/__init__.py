"""How alike two things are: lengths with a direction, kernels of representations, their geometry.

`lengths` holds the asymmetric similarity of one query and one reference, `kernels` the comparison
of whole representations, `alignment` inputs whose geometry agrees with the targets to a prescribed
degree, and `geometry` what a linear readout can make of a representation.
"""

from asym.similarity.alignment import (
    AlignedTask,
    aligned_inputs,
    aligned_spectrum,
    alignment_coordinates,
    hadamard_dichotomies,
    largest_alignment,
    nudged_xor,
    random_aligned_kernel,
    random_aligned_spectrum,
    spectrum_alignment,
)
from asym.similarity.geometry import (
    ccgp,
    parallelism_score,
    shattering_dimension,
    squared_hinge_scores,
)
from asym.similarity.kernels import (
    center_kernel,
    cka,
    kernel_participation_ratio,
    kernel_to_sqdist,
    linear_cka,
    participation_ratio,
    unbiased_cka,
    unbiased_hsic,
)
from asym.similarity.lengths import (
    asymmetric_similarity,
    directed_norm_ratio_loss,
    norm_ratio,
    norm_ratio_loss,
    norm_ratio_loss_all_pairs,
    passes_filter,
    sample_scale_pairs,
    select_extreme_pairs,
    select_scale_pairs,
)

__all__ = [
    "AlignedTask",
    "aligned_inputs",
    "aligned_spectrum",
    "alignment_coordinates",
    "asymmetric_similarity",
    "ccgp",
    "center_kernel",
    "cka",
    "directed_norm_ratio_loss",
    "hadamard_dichotomies",
    "kernel_participation_ratio",
    "kernel_to_sqdist",
    "largest_alignment",
    "linear_cka",
    "norm_ratio",
    "norm_ratio_loss",
    "norm_ratio_loss_all_pairs",
    "nudged_xor",
    "parallelism_score",
    "participation_ratio",
    "passes_filter",
    "random_aligned_kernel",
    "random_aligned_spectrum",
    "sample_scale_pairs",
    "select_extreme_pairs",
    "select_scale_pairs",
    "shattering_dimension",
    "spectrum_alignment",
    "squared_hinge_scores",
    "unbiased_cka",
    "unbiased_hsic",
]

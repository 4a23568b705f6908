"""Causal bandits: learning linear graphs whose two kinds of error are not alike.

A system has N nodes, and the last one is the reward.  ``B[p, n]`` is the weight of the edge from p
to n.  An action is one bit a node; it chooses, node by node, whether the observational or the
interventional column is in force, so all 2^N actions share the samples of 2N columns.  Where arrays
have an axis ``value``, index 0 is observational and index 1 interventional.

Reference:
    Peng, Zhang and Mitra, "Asymmetric graph error control with low complexity in causal bandits",
    IEEE Transactions on Signal Processing, 2025, arXiv 2408.11240.
"""

from asym.causal.confidence import (
    column_change_stat,
    column_error_variance,
    cosine_anneal,
    graph_change_stat,
    ucb_width,
)
from asym.causal.continuous import (
    acyclicity,
    golem_objective,
    notears_objective,
    threshold_to_dag,
)
from asym.causal.linsem import (
    all_actions,
    expected_reward,
    flow_matrix,
    mean_response,
    path_sum_reward,
    post_intervention,
    sample,
)
from asym.causal.structure import (
    ColumnSamples,
    edge_score,
    estimate_weights,
    is_dag,
    ksg_mutual_information,
    ols_masked,
    prune_to_dag,
    select_samples,
)

__all__ = [
    "ColumnSamples",
    "acyclicity",
    "all_actions",
    "column_change_stat",
    "column_error_variance",
    "cosine_anneal",
    "edge_score",
    "estimate_weights",
    "expected_reward",
    "flow_matrix",
    "golem_objective",
    "graph_change_stat",
    "is_dag",
    "ksg_mutual_information",
    "mean_response",
    "notears_objective",
    "ols_masked",
    "path_sum_reward",
    "post_intervention",
    "prune_to_dag",
    "sample",
    "select_samples",
    "threshold_to_dag",
    "ucb_width",
]

"""Asymmetrical-Similarity Learning: the direction of a copy is in the length of the embedding."""

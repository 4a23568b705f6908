"""Imbalanced multimodal learning: modalities are relied on in inverse proportion to variance."""

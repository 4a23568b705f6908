"""HiCLR: hierarchical consistent contrastive learning of skeletons with growing augmentations."""

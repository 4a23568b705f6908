"""One folder a paper: the binary, its model, its data, its README, its results."""

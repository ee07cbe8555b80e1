"""Parts shared by guides: networks, variational families, unconstrained parameters."""

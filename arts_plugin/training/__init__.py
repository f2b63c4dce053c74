"""From trees to a verifier: Sparse Deep Fork data, labels, losses, the trainer."""

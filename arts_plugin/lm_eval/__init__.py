"""ARTS inside EleutherAI's lm-evaluation-harness: the model `arts`."""

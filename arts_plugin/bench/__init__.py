"""Equal cost: greedy decoding, independent samples and searches on the same questions, at the same number of tokens."""

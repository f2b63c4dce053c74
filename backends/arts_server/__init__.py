"""Backend `server`: the proposer runs on engines with an OpenAI-compatible API."""

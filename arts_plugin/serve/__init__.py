"""`arts serve`: an OpenAI-compatible endpoint that searches behind each request."""

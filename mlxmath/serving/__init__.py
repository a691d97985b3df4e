"""A trained model for people and for programs: a chat in the terminal, an OpenAI-compatible server."""

"""OpenAI-compatible HTTP, both ends: a client for servers, and a server for our models."""

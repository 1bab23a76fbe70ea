"""Uploaded videos: OpenAI's Files API, its index and its storage."""

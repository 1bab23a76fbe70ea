"""Clips with real motion, encoded before a run, and a manifest of what is in them."""

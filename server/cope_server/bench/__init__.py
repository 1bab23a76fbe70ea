"""Measurements of a running server: what its front end costs, and what questions on uploaded files wait for."""

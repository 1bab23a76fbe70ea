"""Training of CoPE video models: synthetic data, the paper's two stages, and one before them for small models."""

"""Training of CoPE video models: synthetic data, the vision encoder of small models, the paper's two stages, evaluation."""

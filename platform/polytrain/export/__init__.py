"""A trained model for others: in MLflow's registry, answering files' bytes, and as graphs that need no polytrain."""

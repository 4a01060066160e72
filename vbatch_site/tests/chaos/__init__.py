"""Break a running server on purpose, and look whether what was promised holds: `make chaos MINUTES=10 SEED=7`."""

"""Data sets and pipelines; imports no jax."""

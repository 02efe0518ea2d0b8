"""Losses: arrays in, per-example arrays out, in nats."""

from fgkd_jax.losses.classification import cross_entropy, smooth_labels
from fgkd_jax.losses.distillation import soft_target_cross_entropy

"""Losses: arrays in, per-example arrays out, in nats."""

"""Thin Linen modules: backbones, heads and normalisation."""

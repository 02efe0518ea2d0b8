"""Evaluators: counts on the device, figures on the host."""

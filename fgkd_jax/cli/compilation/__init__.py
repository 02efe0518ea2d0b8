"""What a compiler says of a training step: for which chips, how large, what it exchanges."""

"""Method-agnostic training: state, step, loop, optimiser, checkpoints."""

"""The loop and what it stands on: step, state, optimizer, sharding, checkpoints, reporting."""

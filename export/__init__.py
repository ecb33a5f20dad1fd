"""From a checkpoint to what is deployed, and the proof that each step equals the one before."""

"""The paper's network, its checkpoints, and how it learns."""

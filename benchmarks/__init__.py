"""How fast and how large, side by side."""

"""What the notebooks draw: attention maps, heavy hitters, and what a cache holds over time."""

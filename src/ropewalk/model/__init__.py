"""Models: transformers' classes with our angles, positions, attention boundaries and loss."""

"""Data that fastsc makes or writes: Color MNIST, photographs of packages, FFCV files."""

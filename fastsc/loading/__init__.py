"""Networks as users name them, with their weights and how they want their images."""

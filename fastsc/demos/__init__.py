"""Small real runs with a picture of what they did."""

"""What the page says of each question: a YAML file, and a module for what takes code."""

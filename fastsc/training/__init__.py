"""From a configuration to weights: data, set-up, steps, validation."""

"""Past steps of a run, rebuilt from its log and its images."""

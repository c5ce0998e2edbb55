"""What an evaluation finds: estimates with intervals, and the files they go into."""

"""What works on this machine: each thing tried in a process of its own."""

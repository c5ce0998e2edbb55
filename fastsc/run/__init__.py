"""A run as it lies on the disk and as a person sees it: folder, log, checkpoints, console."""

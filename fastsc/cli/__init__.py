"""What every command shares: entry, parser, console, and packages that may be missing."""

"""The page of a study: its parts, tables and words."""

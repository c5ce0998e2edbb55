"""Drawing: SVG by matplotlib, on a sheet or in a page, and contact sheets."""

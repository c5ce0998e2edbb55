"""Any classifier as an evaluation sees it: its source, weights, preprocessing and labels."""

"""Questions about any classifier: one file and one function `(model, loader, …)` each."""

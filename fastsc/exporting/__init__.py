"""A run's weights in the forms that others load: a folder of timm's and the hub's, ONNX, .pt2."""

"""The processes of one training, the device of each, and the signals that stop them."""

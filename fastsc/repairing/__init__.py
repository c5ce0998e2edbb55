"""What a repair has come to: the network before and after, compared by an evaluation."""

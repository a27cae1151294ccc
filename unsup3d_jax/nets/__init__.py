"""Networks and the weights of others."""

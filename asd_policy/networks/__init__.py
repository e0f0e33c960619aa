"""Networks: the one seam they are called through, the native architectures, and the backends that run them."""

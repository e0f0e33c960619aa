"""Other people's files as untrusted input: read value by value, without importing or calling anything in them."""

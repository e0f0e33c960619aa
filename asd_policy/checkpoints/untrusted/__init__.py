"""Files of others as untrusted input: read value by value, nothing in them imported or called."""

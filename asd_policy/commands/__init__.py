"""The commands of `asd-policy`, a file each: a dataclass of options with `run(console) -> exit status`."""

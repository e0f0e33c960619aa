"""The version of this package, for modules that its front door `asd_policy` imports."""

from importlib.metadata import PackageNotFoundError, version

try:
    PACKAGE_VERSION = version("asd-policy")
except PackageNotFoundError:  # run from a checkout that is not installed
    PACKAGE_VERSION = "0+unknown"

"""fastdiff: choose, apply and measure optimizations of diffusion pipelines, and share them as a file."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("fastdiff-inference")
except PackageNotFoundError:  # a checkout that nobody installed
    __version__ = "0+unknown"

__all__ = ["__version__"]
